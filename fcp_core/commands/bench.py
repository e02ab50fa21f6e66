"""``fcp bench``: load on the command line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcp_core.commands.output import make_table, print_tables, write_file
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.admin.client import AdminClient
    from fcp_core.bench import Load, Report
    from fcp_core.bench.report import ServerCost, TaskEnd
    from fcp_core.bench.server import OwnServer
    from fcp_core.bench.task import BenchTask
    from fcp_core.commands.invocation import Invocation

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def bench() -> None:
    """Put a server under load."""


@bench.command()
@click.option("--clients", default=1000, show_default=True, help="Virtual devices.")
@click.option("--connections", default=64, show_default=True, help="How many talk at a time.")
@click.option("--keep", is_flag=True, help="Devices take over the connections of others.")
@click.option("--server", help="A server's address; without it, one is started for the run.")
@click.option("--token-file", type=_FILE, help="Its admin token: the run brings its own task.")
@click.option("--api-key", default="", help="Sent with every request of a device.")
@click.option("--ca-file", type=_FILE, help="PEM certificates to trust, not the system's.")
@click.option("--population", default="bench", show_default=True, help="The devices' own.")
@click.option("--task", help="A task that is open there already, by its name.")
@click.option("--update", type=_FILE, help="A checkpoint that its devices contribute.")
@click.option("--elements", default=1, show_default=True, help="float32 in a contribution.")
@click.option("--goal", type=int, help="Contributions that end the round [default: --clients].")
@click.option("--broadcast", is_flag=True, help="Devices download as much as they contribute.")
@click.option(
    "--format",
    "checkpoint_format",
    type=click.Choice(["tf_v1", "federated_compute"]),
    default="federated_compute",
    show_default=True,
    help="Of the contributions.",
)
@click.option("--gzip/--no-gzip", default=False, help="Compress requests, as devices may.")
@click.option("--seed", default=0, show_default=True, help="The same seed, the same numbers.")
@click.option(
    "--time-limit", default=600.0, show_default=True, help="Seconds after which the run ends."
)
@click.option("--retries", default=2, show_default=True, help="Of requests answered 503 or 429.")
@click.option("--json", "json_file", type=_FILE, help="Write all figures as JSON.")
@click.option("--plot", type=_FILE, help="Draw them as SVG.")
@click.pass_obj
def load(
    invocation: Invocation,
    /,
    server: str | None,
    token_file: Path | None,
    update: Path | None,
    goal: int | None,
    elements: int,
    broadcast: bool,
    checkpoint_format: Any,
    json_file: Path | None,
    plot: Path | None,
    **given: Any,
) -> None:
    """Drive virtual devices against a server, with the real protocol.

    Each checks in, waits for a task, downloads what belongs to it, reports, uploads a contribution
    and submits it. Without --server, a server runs beside it, with the configuration that --config
    and --set give, and what it costs is measured too.
    """
    import asyncio

    from fcp_core.bench import drive
    from fcp_core.bench.task import BenchTask

    if elements < 1:
        raise UsageError(f"--elements must be at least 1, not {elements}.")
    if goal is not None and not 1 <= goal <= 2**31 - 1:
        raise UsageError(f"--goal must be at least 1, not {goal}.")
    if (given["task"] is None) != (update is None) or (update is not None and server is None):
        raise UsageError(
            "--server, --task and --update go together: a task that is open there, and a "
            "checkpoint that fits it."
        )
    task = BenchTask(elements, checkpoint_format, broadcast, given["seed"])
    if server is None:
        report = _on_own_server(invocation, _load(given, [b""]), task, goal)
    elif update is None:
        load = _load(given, [b""])
        with _admin(invocation, server, token_file, load) as client:
            report = _with_own_task(client, load, task, goal)
    else:
        report = asyncio.run(drive(server, _load(given, [_read(update, given["gzip"])])))
    for path, text in ((json_file, _as_json), (plot, _as_svg)):
        if path is not None:
            write_file(path, text(report).encode())
    _print(report)
    if not report.contributed:
        raise click.ClickException("no device contributed.")


def _load(given: dict[str, Any], bodies: list[bytes]) -> Load:
    from fcp_core.bench import Load

    load = Load(bodies=bodies, **given)
    load.check()
    return load


def _read(path: Path, compressed: bool) -> bytes:
    import gzip

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from None
    return gzip.compress(data, 1, mtime=0) if compressed else data


def _on_own_server(invocation: Invocation, load: Load, task: BenchTask, goal: int | None) -> Report:
    from fcp_core.admin.client import AdminClient
    from fcp_core.bench.load import allow_files
    from fcp_core.bench.server import OwnServer

    allow_files(min(load.connections, load.clients), load.most_connections)
    # Nothing of a run should stay, unless that is asked for.
    settings = {"storage": "memory", "metrics": "yes", **invocation.overrides}
    arguments = [] if invocation.config_file is None else ["--config", invocation.config_file]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={value}"]
    with OwnServer(arguments) as server, AdminClient(server.url, server.token) as client:
        return _with_own_task(client, load, task, goal, server)


def _admin(invocation: Invocation, server: str, token_file: Path | None, load: Load) -> AdminClient:
    from fcp_core.commands.tasks import connect

    return connect(invocation, server, token_file, load.ca_file)


def _with_own_task(
    client: AdminClient,
    load: Load,
    task: BenchTask,
    goal: int | None,
    server: OwnServer | None = None,
) -> Report:
    from fcp_core.bench.run import run
    from fcp_core.protocol.status import StatusError

    try:
        return run(client, load, task, goal, server)
    except StatusError as error:
        raise UsageError(
            f"the server {client.url} did not take the run's task: {error.message}."
        ) from error


# What is printed.


def _print(report: Report) -> None:
    click.echo(
        f"{report.clients} devices in {report.seconds:.1f} s: "
        f"{report.sessions_per_second:.1f} sessions a second that contributed"
    )
    for outcome, count in report.outcomes.items():
        click.echo(f"  {count} {outcome}")
    table = make_table("step", "requests", "p50 ms", "p99 ms", "longest ms")
    for name, times in report.steps.items():
        table.add_row(
            name,
            str(times.count),
            *(f"{value:.1f}" for value in (times.p50, times.p99, times.longest)),
        )
    print_tables(table)
    click.echo(
        f"sent {report.bytes_sent / 1e6:.1f} MB, received {report.bytes_received / 1e6:.1f} MB, "
        f"{report.connections} connections, {report.retries} requests sent again"
    )
    if report.task is not None:
        click.echo(_about_task(report.task))
    if report.server is not None:
        click.echo(_about_server(report.server))


def _about_task(task: TaskEnd) -> str:
    exact = {True: "the result is exact", False: "THE RESULT IS WRONG", None: ""}[task.exact]
    return ", ".join(
        part for part in (f"round {task.state}: {task.contributed} of {task.goal}", exact) if part
    )


def _about_server(cost: ServerCost) -> str:
    parts = [
        f"{cost.cpu_ms_per_device:.2f} ms of processor time a device",
        f"memory {cost.idle_mb:.0f} MB before, at most {cost.peak_mb:.0f} MB",
    ]
    if cost.loop_lag_p99_ms is not None:
        parts.append(f"loop lag p99 at most {cost.loop_lag_p99_ms:g} ms")
    return f"server: {'; '.join(parts)}"


def _as_json(report: Report) -> str:
    import json

    # A figure that this system cannot tell is null: JSON has no NaN.
    return json.dumps(_without_nan(report.as_dict()), indent=2) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_svg(report: Report) -> str:
    from fcp_core.bench.plot import draw

    return draw(report)
