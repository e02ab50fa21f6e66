"""``fcp client``: a device on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fcp_core.commands.output import say
from fcp_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fcp_core.client.client import Client
    from fcp_core.client.privacy import PrivacyPolicy
    from fcp_core.client.protocols import DeviceProtocol
    from fcp_core.client.results import SessionResult
    from fcp_core.client.stores import ExampleStore

F = TypeVar("F", bound=Callable[..., Any])

#: In seconds: a year.
_LONGEST_SLEEP = 366 * 86400.0


def _option(name: str, **settings: Any) -> Callable[[F], F]:
    """Declare an option that is also understood with underscores, as the reference spells it."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
    return click.option(*spellings, **settings)


@click.command(name="client")
@_option("server", required=True, help="The server's address, https:// or http://localhost.")
@_option("population", required=True, help="The population to belong to.")
@_option("session", default="", help="The name of the sessions in the history.")
@_option("api-key", default="", help="Sent with every request.")
@_option(
    "test-cert",
    type=click.Path(dir_okay=False),
    help="A PEM file of certificates to trust, not the system's.",
)
@_option(
    "client-certfile",
    type=click.Path(exists=True, dir_okay=False),
    help="A PEM certificate to show to the server.",
)
@_option(
    "client-keyfile",
    type=click.Path(exists=True, dir_okay=False),
    help="Its key, if that is in a file of its own.",
)
@_option("retry-token", default="", help="Accepted for the reference client's callers; not sent.")
@_option("client-version", default="", help="The version code to send.")
@_option("client-attestation-measurement", default="", help="The attestation to send.")
@_option("example-data-path", default="", help="A serialized ClientRunnerExampleData file.")
@_option("num-empty-examples", default=0, show_default=True, help="Empty examples instead of data.")
@_option(
    "tfrecord",
    multiple=True,
    metavar="COLLECTION_URI=PATH",
    help="A TFRecord file as a collection; may be repeated.",
)
@_option(
    "sql",
    multiple=True,
    metavar="COLLECTION_URI=PATH",
    help="A file whose tables queries in SQL may read, as a collection: SQLite, CSV, JSON lines or "
    "Parquet; may be repeated, also for one collection.",
)
@_option(
    "sql-engine",
    type=click.Choice(["sqlite", "duckdb"]),
    default="sqlite",
    show_default=True,
    help="What answers queries in SQL; DuckDB is for large Parquet files.",
)
@_option(
    "privacy-policy",
    type=click.Path(dir_okay=False),
    help="A TOML file that says which tasks the device runs.",
)
@_option(
    "never",
    multiple=True,
    metavar="COLLECTION_URI",
    help="A collection of which nothing is given, * for any letters; may be repeated.",
)
@_option("minimum-peers", type=int, help="Run tasks only whose sums have so many devices.")
@_option("epsilon-per-week", type=float, help="What the tasks of seven days may cost together.")
@_option("history", default="", help="A file that remembers contributions (SQLite).")
@_option(
    "allow-op",
    multiple=True,
    metavar="OPERATION",
    help="A TensorFlow operation that plans may use beside the usual ones; may be repeated.",
)
@_option(
    "allow-all-operations",
    is_flag=True,
    help="Let plans use all of TensorFlow: files, the network. For a server that you trust.",
)
@_option("max-answer-mb", default=512, show_default=True, help="MiB of an answer as it is sent.")
@_option("max-content-mb", default=1024, show_default=True, help="MiB of it, decompressed.")
@_option("max-answer-secs", default=1800.0, show_default=True, help="Seconds for an answer.")
@_option("max-plan-secs", default=1800.0, show_default=True, help="Seconds that a plan may run.")
@_option(
    "max-memory-mb",
    default=4096,
    show_default=True,
    help="MiB of memory for this process, where the system keeps such limits; 0: no limit.",
)
@_option("num-rounds", default=1, show_default=True, help="How many sessions; negative: for ever.")
@_option(
    "sleep-after-round-secs",
    default=3.0,
    show_default=True,
    help="Seconds between sessions; negative: as long as the server asks.",
)
def client(
    server: str,
    population: str,
    session: str,
    api_key: str,
    test_cert: str | None,
    client_certfile: str | None,
    client_keyfile: str | None,
    retry_token: str,
    client_version: str,
    client_attestation_measurement: str,
    example_data_path: str,
    num_empty_examples: int,
    tfrecord: tuple[str, ...],
    history: str,
    num_rounds: int,
    sleep_after_round_secs: float,
    **safety: Any,
) -> None:
    """Be a device: take tasks from a server, run them and contribute.

    Ends with status 0 if at least one session was gone through, whatever came of it.
    """
    from fcp_core.client.client import Client
    from fcp_core.client.history import History
    from fcp_core.protocol.status import Code, StatusError

    store = _store(example_data_path, num_empty_examples, tfrecord, _sql_stores(safety))
    sleep = _sleep(sleep_after_round_secs)
    succeeded = False
    with ExitStack() as cleanup:
        contributions = History(history) if history else None
        if contributions is not None:
            cleanup.callback(contributions.close)
        try:
            device = Client(
                server,
                population,
                stores=store,
                api_key=api_key,
                ca_file=test_cert or None,
                certfile=client_certfile,
                keyfile=client_keyfile,
                client_version=client_version,
                attestation_measurement=client_attestation_measurement,
                session=session,
                history=contributions,
                protocols=_protocols(),
                **_safety(**safety),
            )
        except StatusError as error:
            say(f"fcp client: {error.message}", err=True)
            sys.exit(1)
        cleanup.enter_context(device)
        cleanup.enter_context(_ended_by_signals(device))
        for number, result in enumerate(device.run(num_rounds, sleep), 1):
            say(f"session {number}: {_describe(result)}")
            if result.error is None or result.error.code is not Code.CANCELLED:
                succeeded = True
    sys.exit(0 if succeeded else 1)


def _sleep(seconds: float) -> float | None:
    """Return the seconds between sessions; None: as the server asks."""
    if seconds < 0:
        return None
    if not seconds <= _LONGEST_SLEEP:
        raise UsageError(
            f"--sleep-after-round-secs takes at most {_LONGEST_SLEEP:.0f} seconds, not {seconds}."
        )
    return seconds


def _privacy(
    privacy_policy: str | None,
    never: tuple[str, ...],
    minimum_peers: int | None,
    epsilon_per_week: float | None,
) -> PrivacyPolicy | None:
    """Return the owner's policy: that of the file and of the options together."""
    path, peers, epsilon = privacy_policy, minimum_peers, epsilon_per_week
    if path is None and not never and peers is None and epsilon is None:
        return None
    from fcp_core.client.privacy import Acceptance, PrivacyPolicy

    if (peers is not None and peers < 2) or (epsilon is not None and not epsilon > 0):
        raise UsageError("--minimum-peers takes 2 or more, --epsilon-per-week more than 0.")
    given = PrivacyPolicy() if path is None else PrivacyPolicy.read(path)
    accept = given.accept
    if peers is not None or epsilon is not None:
        if accept:
            raise UsageError(
                "--minimum-peers and --epsilon-per-week do not go together with 'accept' in the "
                "privacy policy: write it there."
            )
        accept = (Acceptance(minimum_peers=peers, epsilon_per_week=epsilon),)
    return PrivacyPolicy((*given.never, *never), accept)


def _safety(
    allow_op: tuple[str, ...],
    allow_all_operations: bool,
    max_answer_mb: int,
    max_content_mb: int,
    max_answer_secs: float,
    max_plan_secs: float,
    max_memory_mb: int,
    **privacy: Any,
) -> dict[str, Any]:
    """Limit the memory of this process; return the other limits as a client takes them.

    :param privacy: the options of the owner's policy.
    """
    from fcp_core.client.graph_guard import OperationRules
    from fcp_core.client.limits import Limits, limit_memory

    if max_memory_mb:
        limit_memory(max_memory_mb << 20)
    return {
        "privacy": _privacy(**privacy),
        "operations": OperationRules(frozenset(allow_op), allow_all_operations),
        "limits": Limits(
            answer_bytes=max_answer_mb << 20,
            content_bytes=max_content_mb << 20,
            answer_seconds=max_answer_secs,
            plan_seconds=max_plan_secs,
        ),
    }


def _protocols() -> list[DeviceProtocol]:
    """Return the device's side of the aggregation protocols that plugins bring."""
    from fcp_core.plugins.manager import Plugins

    try:
        factories = Plugins.load().protocols.values()
    except UsageError as error:  # a device needs no plugin, so a server's mistake is not its own
        click.echo(f"fcp client: goes on without plugins: {error}", err=True)
        return []
    sides = [getattr(factory, "device", None) for factory in factories]
    return [make() for make in sides if make is not None]


def _store(
    example_data_path: str,
    num_empty: int,
    tfrecords: tuple[str, ...],
    tables: Mapping[str, ExampleStore],
) -> ExampleStore:
    from fcp_core.client import stores
    from fcp_core.protocol.status import StatusError

    if (tfrecords or tables) and (example_data_path or num_empty):
        raise UsageError(
            "--tfrecord and --sql exclude --example-data-path and --num-empty-examples: give one "
            "kind of examples."
        )
    # As in the published runner, a file of examples wins over a number of empty ones.
    if example_data_path:
        try:
            return stores.ExampleDataStore(example_data_path)
        except StatusError as error:
            raise UsageError(f"--example-data-path: {error.message}.") from error
    if not tfrecords and not tables:
        return stores.EmptyExamplesStore(num_empty)
    collections: dict[str, ExampleStore] = {}
    for given in tfrecords:
        uri, path = _collection_and_path(given, "--tfrecord")
        collections[uri] = stores.TFRecordStore(path)
    return stores.CollectionStore({**collections, **tables})


def _sql_stores(options: dict[str, Any]) -> dict[str, ExampleStore]:
    """Take the options about SQL; return the stores, by the collections that they are."""
    given, engine = options.pop("sql"), options.pop("sql_engine")
    if not given:
        return {}
    from fcp_core.client.sql_store import SQLStore

    paths: dict[str, list[str]] = {}
    for each in given:
        uri, path = _collection_and_path(each, "--sql")
        paths.setdefault(uri, []).append(path)
    return {uri: SQLStore(*files, engine=engine) for uri, files in paths.items()}


def _collection_and_path(given: str, option: str) -> tuple[str, str]:
    """Split ``COLLECTION_URI=PATH``; either may have equals signs, so the file decides.

    :raises UsageError: if it has not both, or there is no such file.
    """
    pairs = [
        (given[:at], given[at + 1 :])
        for at, sign in enumerate(given)
        if sign == "=" and 0 < at < len(given) - 1
    ]
    if not pairs:
        raise UsageError(f"{option} takes COLLECTION_URI=PATH, not {given!r}.")
    for pair in pairs:
        if os.path.exists(pair[1]):
            return pair
    raise UsageError(f"{option} {given}: there is no file {pairs[0][1]}.")


@contextmanager
def _ended_by_signals(device: Client) -> Iterator[None]:
    """Interrupt the device politely when the process is asked to end.

    The interpreter runs a signal's handler between two steps of the main thread, so a signal that
    comes just before a blocking call would wait for that call. What is written to the wake-up
    descriptor is read at once, on a thread of its own.
    """
    import signal
    import socket
    import threading

    woken, wake = socket.socketpair()
    wake.setblocking(False)

    def watch() -> None:
        if woken.recv(1):
            device.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        watcher.start()
    except RuntimeError as error:  # there is no memory for a thread's stack
        raise UsageError(f"{error}: --max-memory-mb may be too little.") from error
    previous = {
        number: signal.signal(number, lambda number, frame: None)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    previous_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_wake)
        for number, handler in previous.items():
            signal.signal(number, handler)
        wake.close()
        watcher.join()
        woken.close()


def _describe(result: SessionResult) -> str:
    parts = [result.outcome.value]
    for task in result.tasks:
        detail = str(task.error) if task.error else f"{task.checkpoint_bytes} bytes"
        parts.append(
            f"{task.task_name} {task.outcome.value} in {task.computation_seconds:.2f} s ({detail})"
        )
    if result.error is not None:
        parts.append(f"{result.error.code.name}: {result.error.message}")
    parts.append(f"back in {result.retry_after:.0f} s")
    return "; ".join(parts)
