"""Federated programs against a real server, with devices that talk to it over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_core.client import CallableStore, Client
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import client_runner_example_data_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_platform.runtime import LocalRuntime
from tests.platform.programs import (
    COLLECTION,
    MULTIPLE,
    POPULATION,
    Progress,
    devices,
    greatest,
    holding,
    serving,
    source,
    sum_up,
)

pytestmark = [pytest.mark.tff, pytest.mark.slow]


def test_reference_program_with_client_processes(tmp_path: Path) -> None:
    """The documentation's program: a sum over two rounds, by processes of the command line."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    iterator = source().iterator()

    async def program() -> list[tuple[int, int]]:
        state: Any = np.int64(5)
        seen = []
        for _ in range(2):
            state, metrics = computation(state, iterator.select(2))
            seen.append((await state.get_value(), await metrics["sum"].get_value()))
        return seen

    with serving() as context, contextlib.ExitStack() as stack:
        for number in (1, 20):
            path = tmp_path / f"examples-{number}"
            message = client_runner_example_data_pb2.ClientRunnerExampleData()
            examples = message.examples_by_collection_uri[COLLECTION].examples
            examples.extend([str(number).encode(), b"300"])
            path.write_bytes(message.SerializeToString())
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fcp_core", "client"),
                    f"--server=http://localhost:{context.server_port}",
                    f"--population={POPULATION}",
                    f"--example-data-path={path}",
                    "--num-rounds=-1",
                    "--sleep-after-round-secs=0.1",
                ],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        seen = asyncio.run(program())
    # A device may contribute twice to a round, as in the reference.
    for before, (state, sum_) in zip([5, seen[0][0]], seen, strict=True):
        assert state == before + sum_
        assert sum_ in (602, 621, 640)


def test_a_program_whose_plans_lie_in_the_assignments() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    sent = set()

    class Watcher:
        @hookimpl
        def fcp_check_task(self, task: Any) -> None:
            sent.add(task.resources)

    async def program() -> int:
        state, _metrics = computation(np.int64(0), source().iterator().select(2))
        return await state.get_value()

    with (
        serving(resources="inline", plugins=[Watcher()]) as context,
        # One of them may be quick enough to contribute twice.
        devices(context, holding(7, 7)),
    ):
        assert asyncio.run(program()) == 14
    assert sent == {"inline"}


def test_a_program_whose_server_has_two_processes() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> list[int]:
        state: Any = np.int64(0)
        iterator = source().iterator()
        for _ in range(2):
            state, _metrics = computation(state, iterator.select(4))
        return [await state.get_value()]

    # The observer is this process's alone; what all would need cannot be an object of the program.
    with (
        serving(processes=2, plugins=[progress]) as context,
        devices(context, holding(7, 7, 7, 7)),
    ):
        assert asyncio.run(program()) == [56]
    assert progress.count("Contributed") == 8


def test_multiple_tasks_at_once_and_rounds_of_one_name() -> None:
    single = fcp_demo.FederatedComputation(sum_up, name="single")
    first = fcp_demo.FederatedComputation(sum_up, name="first")
    second = fcp_demo.FederatedComputation(greatest, name="second")
    several = source(task_assignment_mode=MULTIPLE).iterator()
    one_by_one = source().iterator()

    async def program() -> list[Any]:
        zero = np.int64(0)
        rounds = [
            first(zero, several.select(3)),
            second(zero, several.select(3)),
            # The second round of a name starts from the first one's state without waiting for it.
            one := single(zero, one_by_one.select(2)),
            single(one[0], one_by_one.select(2)),
        ]
        return await tff.program.materialize_value(rounds)

    with serving() as context, devices(context, holding(7, 7, 7)):
        (_, a), (_, b), (c, _), (d, _) = asyncio.run(program())
    assert (a["sum"], b, c, d) == (21, 7, 14, 28)


def test_round_in_which_every_client_fails() -> None:
    def fail(uri: str) -> list[bytes]:
        raise StatusError(Code.INVALID_ARGUMENT, f"no collection {uri}")

    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(2))
        await state.get_value()

    progress = Progress()
    with (
        serving(deadline=600.0, plugins=[progress]) as context,
        devices(context, [fail, fail]),
        pytest.raises(
            fcp_demo.AggregationFailedError, match=r"^Aggregation failed\. sum: "
        ) as error,
    ):
        asyncio.run(program())
    # The program hears of it long before the deadline, and why.
    assert error.value.code is Code.INTERNAL
    assert "its first 10 devices all failed alike (computation INTERNAL" in str(error.value)
    assert progress.count("Dropped") >= 10


def test_minimum_fraction_is_enough_at_the_deadline() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1000))
        return await state.get_value()

    with (
        serving(deadline=5.0, minimum_fraction=0.001, plugins=[progress]) as context,
        devices(context, holding(3)),
    ):
        assert asyncio.run(program()) == 3 * progress.count("Contributed")


def test_program_that_ends_cancels_the_round() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> None:
        state, _ = computation(0, source().iterator().select(1))
        waiting = asyncio.ensure_future(state.get_value())
        await asyncio.to_thread(progress.wait_for, "TaskOpened")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with serving(plugins=[progress]):
        asyncio.run(program())
        progress.wait_for("TaskClosed")
    assert [e.code for e in progress.events if type(e).__name__ == "TaskClosed"] == [Code.CANCELLED]


def test_who_stops_waiting_does_not_end_the_round() -> None:
    """Neither one that runs out of time, nor one of several, nor a round that waits for it."""
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program(context: Any) -> list[int]:
        state, metrics = computation(0, source().iterator().select(1))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(state.get_value(), 0)
        waiting = [asyncio.ensure_future(metrics["sum"].get_value()) for _ in range(3)]
        await asyncio.to_thread(progress.wait_for, "TaskOpened")
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        with devices(context, holding(3)):
            return [*await asyncio.gather(*waiting[1:]), await state.get_value()]

    with serving(plugins=[progress]) as context:
        assert asyncio.run(program(context)) == [3, 3, 3]


def test_stopped_context_fails_its_rounds() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    progress = Progress()

    async def program() -> None:
        with serving(plugins=[progress]):
            state, _ = computation(0, source().iterator().select(1))
            await asyncio.to_thread(progress.wait_for, "TaskOpened")
        with pytest.raises(fcp_demo.AggregationFailedError):
            await state.get_value()

    asyncio.run(program())


def test_tls(certificates: Path) -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")

    async def program() -> Any:
        state, _ = computation(0, source().iterator().select(1))
        return await state.get_value()

    with serving(certfile=certificates / "server.pem") as context:
        assert context.server_url.startswith("https://localhost:")
        client = Client(
            context.server_url,
            POPULATION,
            stores=CallableStore(lambda selector: [b"11"]),
            ca_file=str(certificates / "authority.pem"),
        )
        done = threading.Event()

        def live() -> None:
            while not done.is_set():
                client.run_once()
                done.wait(0.05)

        thread = threading.Thread(target=live)
        thread.start()
        try:
            assert asyncio.run(program()) == 11
        finally:
            done.set()
            client.interrupt()
            thread.join()


def test_a_computation_is_simulated_in_a_context_of_tff() -> None:
    computation = fcp_demo.FederatedComputation(sum_up, name="sum")
    with LocalRuntime():
        state, metrics = computation(data=[["1", "2"], ["4"]], state=5)
    assert (state, metrics["sum"]) == (12, 7)
