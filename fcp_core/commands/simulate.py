"""``fcp simulate``: the policy lab on the command line."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcp_core.commands.output import make_table, open_text, print_tables, say
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from fcp_core.commands.invocation import Invocation
    from fcp_core.lab import Report, Run, Scenario
    from fcp_core.plugins.manager import Plugins
    from fcp_core.rounds.policies import RetryWindow

F = TypeVar("F", bound=Callable[..., Any])


def _duration(value: str) -> float:
    """Return seconds for text such as 90s, 5m, 1h30m."""
    from fcp_core.plugins.values import convert

    try:
        seconds: float = convert("duration", value, Path())
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not {error}.") from None
    return seconds


def _window(value: str) -> RetryWindow:
    """Return a retry window for two durations: 1h-3h."""
    from fcp_core.rounds.policies import RetryWindow

    low, dash, high = value.partition("-")
    if not dash:
        raise click.BadParameter(f"{value!r} is not two durations such as 1h-3h.")
    return RetryWindow(_duration(low.strip()), _duration(high.strip()))


def _time(
    name: str, default: str, text: str, kind: Callable[[str], Any] = _duration
) -> Callable[[F], F]:
    """Declare an option that is a time, or two of them."""
    shown = "TIME" if kind is _duration else "MIN-MAX"
    return click.option(
        name, type=kind, metavar=shown, default=default, show_default=True, help=text
    )


@click.command(name="simulate")
@click.argument("policies", nargs=-1, required=True, metavar="POLICY...")
@click.option("--devices", default=20_000, show_default=True, help="How many, up to 1,000,000.")
@click.option("--hours", default=24.0, show_default=True, help="Virtual hours.")
@click.option("--seed", default=0, show_default=True, help="The same seed, the same results.")
@click.option("--goal", default=100, show_default=True, help="Contributions that end a round.")
@click.option("--minimum", type=int, help="How many are enough at the deadline; default: the goal.")
@click.option(
    "--over-selection",
    type=float,
    help="Devices at work per place; default: as many as drop-outs make necessary.",
)
@click.option("--tasks", default=1, show_default=True, help="Computations that run side by side.")
@click.option("--eligible", default=1.0, show_default=True, help="Share of devices for each task.")
@_time("--deadline", "1h", "Of a round.")
@_time("--pause", "1m", "Between rounds.")
@click.option("--drop-out", default=0.06, show_default=True, help="How often a device fails.")
@click.option("--silent", default=0.5, show_default=True, help="How many of those say nothing.")
@_time("--alignment", "0s", "Devices wake at multiples of this time only.")
@_time("--retry", "1h-3h", "When devices come back that got no task.", _window)
@_time("--retry-accepted", "4h-8h", "When devices come back that got one.", _window)
@_time("--step", "250ms", "Policies are asked once a step.")
@click.option(
    "--vary",
    multiple=True,
    metavar="OPTION=VALUE,...",
    help="Try each of these values of an option above, in all combinations; may be repeated.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Run on the cluster of this scheduler, with the engine that takes an address.",
)
@click.option("--csv", metavar="FILE", help="Write a line for each round; - is the output.")
@click.option("--timeline", metavar="FILE", help="Write the check-ins of each minute as CSV.")
@click.option("--plot", metavar="FILE", help="Draw the comparison as SVG.")
@click.pass_context
def simulate(
    context: click.Context,
    /,
    policies: tuple[str, ...],
    vary: tuple[str, ...],
    cluster: str | None,
    csv: str | None,
    timeline: str | None,
    plot: str | None,
    **given: Any,
) -> None:
    """Try selection policies on virtual devices, side by side.

    A POLICY is the name of an installed one, with options of its own if wanted:
    uniform:window=30s,min_candidates=50. Other options are the configuration's.

    A configured engine other than the default one plays the runs at the same time.
    """
    from fcp_core import lab

    choices = _varied(context, vary)
    runs = []
    for policy, *chosen in itertools.product(policies, *choices.values()):
        label, values = policy, dict(given)
        for name, (text, value) in zip(choices, chosen, strict=True):
            label += f" {name.replace('_', '-')}={text}"
            values[name] = value
        seed = values.pop("seed")
        runs.append(lab.Run(policy, _scenario(**values), seed, label))
    reports = _play(runs, context.obj, cluster)
    if csv is not None:
        with open_text(csv) as file:
            lab.write_rounds(reports, file)
    if timeline is not None:
        with open_text(timeline) as file:
            lab.write_timeline(reports, file)
    if plot is not None:
        title = f"{given['devices']:,} devices, {given['hours']:g} h, rounds of {given['goal']}"
        title = ", ".join((title, *vary))
        with open_text(plot) as file:
            file.write(lab.draw(reports, title))
    if "-" not in (csv, timeline, plot):
        _print_table(reports)
    for report in reports:
        for problem, count in report.problems.items():
            say(f"{report.policy}: {problem} ({count} times)", err=True)


def _play(runs: list[Run], invocation: Invocation, cluster: str | None) -> list[Report]:
    """Play the runs: here, on the configured engine, or on a cluster."""
    import asyncio

    from fcp_core import lab
    from fcp_core.aggregation.engine import start_engine, stop_engine
    from fcp_core.protocol.status import StatusError

    plugins = invocation.plugins
    if cluster is not None:
        plugins = _for_cluster(invocation, cluster)
    elif plugins.config.origin("", "engine") == "default":
        return lab.sweep(runs, plugins=plugins)
    engine = plugins.make_engine()
    asyncio.run(start_engine(engine))
    try:
        return lab.sweep(runs, plugins=plugins, engine=engine)
    except StatusError as error:
        raise UsageError(f"a run failed on the engine: {error}") from error
    finally:
        asyncio.run(stop_engine(engine))


def _for_cluster(invocation: Invocation, address: str) -> Plugins:
    """Choose the engine that takes an address, and give it this one.

    :raises UsageError: if there is none, or more than one and none of them is configured.
    """
    plugins = invocation.plugins
    sections = {o.option.section for o in plugins.config.options() if o.option.name == "address"}
    takers = [name for name in sorted(plugins.engines) if f"engine.{name}" in sections]
    chosen: str = plugins.config.get("engine")
    if chosen in takers:
        takers = [chosen]
    if len(takers) != 1:
        raise UsageError(
            "--cluster needs an engine that takes the address of a cluster, such as that of "
            + (
                f"fcp-server-dask; [fcp] engine chooses one of {', '.join(takers)}."
                if takers
                else "fcp-server-dask; none is installed."
            )
        )
    return invocation.load_plugins(
        overrides={"engine": takers[0], f"engine.{takers[0]}.address": address}
    )


def _varied(context: click.Context, vary: tuple[str, ...]) -> dict[str, list[tuple[str, Any]]]:
    """Return the values of each varied option, as text and converted.

    :raises UsageError: if there is no such option, or it has no values.
    """
    names = inspect.signature(_scenario).parameters.keys() | {"seed"}
    parameters = {item.name: item for item in context.command.params if item.name in names}
    choices: dict[str, list[tuple[str, Any]]] = {}
    for item in vary:
        option, _, rest = item.partition("=")
        name = option.strip().removeprefix("--").replace("-", "_")
        texts = [text.strip() for text in rest.split(",") if text.strip()]
        if name not in parameters:
            known = ", ".join(sorted(parameters)).replace("_", "-")
            raise UsageError(f"--vary {item}: there is no option {option!r}; there are {known}.")
        if not texts or name in choices:
            raise UsageError(f"--vary {item}: give {option}=VALUE,VALUE once, with its values.")
        parameter = parameters[name]
        choices[name] = [(text, parameter.type_cast_value(context, text)) for text in texts]
    return choices


def _scenario(
    *,
    devices: int,
    hours: float,
    goal: int,
    minimum: int | None,
    over_selection: float | None,
    tasks: int,
    eligible: float,
    deadline: float,
    pause: float,
    drop_out: float,
    silent: float,
    alignment: float,
    retry: RetryWindow,
    retry_accepted: RetryWindow,
    step: float,
) -> Scenario:
    from fcp_core.lab import DeviceModel, Scenario, TaskModel

    if tasks < 1:
        raise UsageError(f"--tasks must be at least 1, not {tasks}.")
    names = ["train"] if tasks == 1 else [f"train/{number + 1}" for number in range(tasks)]
    return Scenario(
        devices=DeviceModel(count=devices, drop_out=drop_out, silent=silent, alignment=alignment),
        tasks=tuple(
            TaskModel(
                name=name,
                goal_count=goal,
                minimum_count=minimum,
                over_selection=over_selection,
                deadline=deadline,
                pause=pause,
                eligible=eligible,
            )
            for name in names
        ),
        hours=hours,
        retry_accepted=retry_accepted,
        retry_rejected=retry,
        step=step,
    )


def _print_table(reports: list[Report]) -> None:
    from fcp_core.lab import COLUMNS, summary

    table = make_table(*COLUMNS, right=True)
    for report in reports:
        table.add_row(*summary(report))
    print_tables(table)
