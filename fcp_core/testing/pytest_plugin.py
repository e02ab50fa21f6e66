"""Fixtures for the tests of plugins: a server, its devices and its clock.

Opt in from a ``conftest.py`` or a test file at the root::

    pytest_plugins = ["fcp_core.testing.pytest_plugin"]

    def test_a_round(fcp_server, fcp_population):
        server = fcp_server(overrides={"selection": "uniform"})
        task = server.submit(query_task(SUM, goal_count=3))
        fcp_population(server, [{"v": [1]}, {"v": [2]}, {"v": [4]}])
        assert server.result(task)["sum"].tolist() == [7]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    # At run time they are imported when a fixture is used, for the sake of coverage's first lines.
    from fcp_core.client import Client, SessionResult
    from fcp_core.rounds.machine import ManualClock
    from fcp_core.testing.servers import RunningServer


@pytest.fixture
def fcp_clock() -> ManualClock:
    """A clock that moves only when told; give it to ``fcp_server`` and call ``advance``."""
    from fcp_core.rounds.machine import ManualClock

    return ManualClock()


@pytest.fixture
def fcp_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start servers, each on a free port; they are stopped after the test.

    The factory's arguments, all by keyword:

    - ``overrides``: configuration values by dotted name, such as
      ``{"selection": "uniform", "selection.uniform.window": "1s"}``;
    - ``extra``: further plugin objects, beside those that are installed;
    - ``config_file``: read this file; without it, no file and no environment counts;
    - ``populations``: those that devices may check in to (``people``);
    - ``clock``: a :class:`ManualClock`; ``seed``: of the server's choices;
    - whatever :class:`fcp_core.server.Server` takes.
    """
    from fcp_core.plugins.manager import Plugins
    from fcp_core.server import Server
    from fcp_core.testing.servers import EventLog, RunningServer

    empty = tmp_path / "fcp_server"
    empty.mkdir()
    with ExitStack() as stack:

        def start(
            *,
            overrides: Mapping[str, Any] | None = None,
            extra: Iterable[object] = (),
            config_file: str | Path | None = None,
            populations: Sequence[str] = ("people",),
            clock: ManualClock | None = None,
            seed: int = 0,
            **arguments: Any,
        ) -> RunningServer:
            log = EventLog()
            plugins = Plugins.load(
                config_file=config_file,
                environ={},
                overrides=overrides,
                extra=[*extra, log],
                working_folder=empty,
            )
            server = Server(
                plugins,
                populations=populations,
                clock=clock,
                rng=random.Random(seed),
                **arguments,
            )
            return stack.enter_context(RunningServer(server, clock=clock, log=log))

        yield start


@pytest.fixture
def fcp_client() -> Iterator[Callable[..., Client]]:
    """Make devices of a server: ``fcp_client(server, {"v": [1, 2]})``; closed after the test.

    The factory takes the server (or its URL), the device's vectors by name, ``population``, and
    whatever :class:`fcp_core.client.Client` takes.
    """
    from fcp_core.testing.servers import make_device

    with ExitStack() as stack:

        def make(
            server: RunningServer | str, vectors: Mapping[str, Any] | None = None, **options: Any
        ) -> Client:
            url = server if isinstance(server, str) else server.url
            return stack.enter_context(make_device(url, vectors or {}, **options))

        yield make


@pytest.fixture
def fcp_population(
    fcp_client: Callable[..., Client],
) -> Callable[..., list[SessionResult]]:
    """Let many devices take part at a time: ``fcp_population(server, [{"v": [1]}, ...])``.

    The factory takes the server, one set of vectors a device, ``threads`` (8), and what
    ``fcp_client`` takes. It returns what came of each device's session, in the order of the data.
    """
    from fcp_core.testing.servers import run_devices

    def run(
        server: RunningServer | str,
        devices: Iterable[Mapping[str, Any]],
        *,
        threads: int = 8,
        **options: Any,
    ) -> list[SessionResult]:
        return run_devices([fcp_client(server, data, **options) for data in devices], threads)

    return run
