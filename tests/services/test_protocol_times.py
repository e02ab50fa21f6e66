"""No aggregation protocol holds up a device, a task or the server for ever."""

from __future__ import annotations

import asyncio

import pytest

from fcp_aggregators.simple_protocol import SimpleProtocol
from fcp_core.protocol import routes
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import ProtocolCall
from fcp_core.rounds.protocols import (
    Accumulate,
    Drop,
    Pending,
    Work,
)
from fcp_core.rounds.tasks import TaskState
from fcp_core.server.services.late_calls import POLLING_INTERVAL
from fcp_core.server.services.protocol_calls import operation_message
from tests.services.faulty_protocols import (
    DEADLINE,
    START,
    SUBMIT,
    TIMEOUT,
    WRONG_OUTCOMES,
    Plugin,
    both,
    fare,
    garbage,
    on,
    start,
    world,
)

SILENT = {
    "never answers": on(SUBMIT, garbage(lambda a, m: ())),
    "accumulates somebody unknown": on(
        SUBMIT, garbage(lambda a, m: [Accumulate(("nobody",), slot="checkpoint")])
    ),
    "accumulates nobody": on(SUBMIT, garbage(lambda a, m: [Accumulate((), checkpoint=b"x")])),
    "drops somebody unknown": on(
        SUBMIT, garbage(lambda a, m: [Drop("nobody", "x", Code.INTERNAL, "")])
    ),
    "asks for work that fails": on(SUBMIT, garbage(lambda a, m: [Work("k", "no.such:thing", b"")])),
}


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
def test_a_call_that_is_never_answered_fails_when_the_assignment_does(kit, kind):
    async def main():
        async with world(kit, kind) as one:
            code, _ = await both(kit, one, kind, wait=True)
            assert code is Code.INTERNAL

    asyncio.run(main())


@pytest.mark.parametrize("kind", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("late", ["accept", "refuse"])
def test_no_protocol_outlives_the_deadline(kit, kind, late):
    wanted = Code.OK if late == "accept" else Code.ABORTED

    async def main():
        async with world(kit, kind, assignment_timeout="1h") as one:
            task = await one.submit(goal=1, late_contributions=late)
            victim = one.device()
            theirs = await victim.assignment()
            fared = asyncio.ensure_future(fare(one, victim, theirs))
            await kit.settle()
            one.advance(DEADLINE)
            with pytest.raises(StatusError, match="came to its deadline with 0 of 1") as caught:
                await one.result(task)
            assert caught.value.code is Code.DEADLINE_EXCEEDED
            assert await asyncio.wait_for(fared, 30) is wanted
            status = await one.status(task)
            assert (status.state, status.surplus) == (TaskState.FAILED, 1)

    asyncio.run(main())


def test_a_device_that_waits_when_the_server_stops_is_told_so(kit):
    async def main():
        waiting = []
        for kind in (SILENT["never answers"], WRONG_OUTCOMES["silence"]):
            async with world(kit, kind) as one:
                await one.submit(goal=2)
                victim = one.device()
                theirs = await victim.assignment()
                waiting.append(asyncio.ensure_future(fare(one, victim, theirs)))
                await kit.settle()
        for fared in waiting:
            assert await asyncio.wait_for(fared, 30) is Code.UNAVAILABLE

    asyncio.run(main())


def test_a_protocol_that_is_always_late_does_not_keep_the_server_busy(kit):
    class Restless(SimpleProtocol):
        ticks = 0

        def tick(self, now):
            self.ticks += 1
            return ()

        def next_tick(self):
            return 0.0

    async def main():
        plugin = Plugin(Restless)
        async with world(kit, plugin) as one:
            task = await one.submit(goal=1)
            protocol = plugin.made[-1]
            for _ in range(50):
                one.services.ticker.run_due()
            assert protocol.ticks <= 1
            one.advance(0.9)
            assert protocol.ticks <= 1
            for _ in range(5):
                one.advance(1.0)
            assert 5 <= protocol.ticks <= 6
            await one.device().run()
            assert await one.result(task) == [1, 1]

    asyncio.run(main())


def test_a_protocol_may_tick_often_if_it_keeps_its_times(kit):
    class Fast(SimpleProtocol):
        when = 0.0
        ticks = 0

        def start(self, task, now):
            self.when = now + 0.1
            return ()

        def tick(self, now):
            self.ticks += 1
            self.when = now + 0.1
            return ()

        def next_tick(self):
            return self.when

    async def main():
        plugin = Plugin(Fast)
        async with world(kit, plugin) as one:
            await one.submit(goal=1)
            for _ in range(20):
                one.advance(0.11)
            assert plugin.made[-1].ticks == 20

    asyncio.run(main())


def test_an_operation_that_is_never_done_ends_with_its_assignment(kit):
    metadata = pb.StartAggregationDataUploadMetadata()
    waiting = on(START, garbage(lambda a, m: [Pending(a, m, metadata)]))

    async def main():
        async with world(kit, waiting) as one:
            await one.submit(goal=1)
            device = one.device()
            operation = await start(one, device, await device.assignment())
            assert not operation.done
            assert operation.metadata.Is(metadata.DESCRIPTOR)
            assert await device.poll(operation.name) == operation
            one.advance(TIMEOUT)
            assert (await device.poll(operation.name)).error.code == Code.INTERNAL

    asyncio.run(main())


@pytest.mark.parametrize("said", [None, 7])
def test_an_operation_always_says_how_often_to_ask(said):
    """A device that is not told asks without a pause."""
    route = routes.route("google.internal.federatedcompute.v1.SecureAggregations", "AdvertiseKeys")
    call = ProtocolCall()
    call.metadata = route.operation_metadata_class()
    if said is not None:
        call.metadata.polling_interval.seconds = said
    metadata = route.operation_metadata_class()
    assert operation_message(route, "token", call).metadata.Unpack(metadata)
    assert metadata.polling_interval.ToTimedelta().total_seconds() == (said or POLLING_INTERVAL)
