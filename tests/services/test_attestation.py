"""What a device attests when it asks for tasks reaches the admission hook; how it reports."""

import asyncio

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import task_assignments_pb2 as pb
from fcp_core.protocol.status import Code
from fcp_core.rounds.policies import Refusal
from fcp_core.rounds.tasks import AssignmentMode


class Attests:
    """Admits only what is bound to the session."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def fcp_admit_checkin(self, check_in, now):
        self.seen.append((check_in.session_id, check_in.attestation_measurement))
        bound = check_in.attestation_measurement == f"signed {check_in.session_id}"
        return Refusal("not bound") if check_in.session_id and not bound else None


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("bound", [False, True])
def test_a_measurement_is_judged_with_the_session_that_it_is_bound_to(kit, multiple, bound):
    async def main():
        plugin = Attests()
        async with kit.world(extra=[plugin]) as world:
            mode = AssignmentMode.MULTIPLE if multiple else AssignmentMode.SINGLE
            task = await world.submit(assignment_mode=mode)
            device = world.device(multiple=multiple)
            await device.check_in()
            service = world.services.task_assignments
            fields = {"population_name": kit.population, "session_id": device.session_id}
            text = f"signed {device.session_id if bound else 'something'}"
            for _ in range(2):
                if multiple:
                    request = pb.PerformMultipleTaskAssignmentsRequest(task_names=["sum"], **fields)
                    request.attestation_measurement.value = text
                    answer = await service.perform_multiple_task_assignments(request)
                    assert len(answer.task_assignments) == bound
                else:
                    request = pb.StartTaskAssignmentRequest(**fields)
                    request.attestation_measurement.value = text
                    answer = device.answer(await service.start_task_assignment(request))
                    assert answer.HasField("task_assignment") is bound
            assert plugin.seen[1:] == [(device.session_id, text)]
            assert (await world.status(task)).assigned == bound
            assert [e.reason for e in world.recorder.of("Rejected")] == ["refused"] * (not bound)

    asyncio.run(main())


def test_too_few_examples_are_no_failure_of_the_computation(kit):
    async def main():
        async with kit.world() as world:
            await world.submit()
            device = world.device()
            given = await device.assignment()
            await device.report(given, Code.FAILED_PRECONDITION)
            (dropped,) = world.recorder.of("Dropped")
            assert (dropped.phase, dropped.code) == ("insufficient_data", Code.FAILED_PRECONDITION)

    asyncio.run(main())
