"""A rehearsal: one task and one device session in this process, to see what plugins do with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import aggregations_pb2, eligibility_eval_tasks_pb2
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.rounds.clock import ManualClock
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.services import Services

#: The name of the rehearsed task.
TASK = "rehearsal"
#: Seconds of the rehearsal's own time after which the device stops waiting.
PATIENCE = 3600


async def rehearse(plugins: Plugins, population: str, tell: Callable[[str], object]) -> None:
    """Start the plugins, run one task with one device, and shut the plugins down.

    The plugins' start-up hooks really run. Nothing is listened on, the storage is a fresh one in
    memory, and time is the rehearsal's own.

    :param tell: told of each stage, in a line.
    :raises UsageError: if a plugin cannot start.
    :raises StatusError: if the task or one of the device's calls is refused.
    """
    if "memory" not in plugins.storages:
        raise UsageError("a rehearsal needs the storage 'memory', which no active plugin offers.")
    clock = ManualClock(time.time())
    tell("start-up")
    await plugins.startup()
    try:
        services = Services(
            plugins,
            populations=(population,),
            base_url="http://localhost/",
            clock=clock,
            storage=plugins.storages["memory"].make({}),
            engine=LocalEngine(plugins.aggregators, workers=0),
        )
        await services.start()
        try:
            await _Session(plugins, services, clock, population, tell).run()
        finally:
            await services.stop()
    finally:
        tell("shutdown")
        await plugins.shutdown()


class _Session:
    """One device's session."""

    def __init__(
        self,
        plugins: Plugins,
        services: Services,
        clock: ManualClock,
        population: str,
        tell: Callable[[str], object],
    ) -> None:
        self._plugins = plugins
        self._services = services
        self._clock = clock
        self._population = population
        self._tell = tell

    async def run(self) -> None:
        """Submit a task, then do what a device does."""
        tell, services = self._tell, self._services
        tell("a task is submitted")
        task = await services.tasks.submit(_task(self._population))
        tell("a device checks in")
        principal = self._plugins.authenticate(
            "POST", f"/v1/eligibilityevaltasks/{self._population}:request", {}, "127.0.0.1"
        )
        request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest(
            population_name=self._population
        )
        request.client_version.version_code = "1"
        request.eligibility_eval_task_capabilities.supports_native_eets = True
        response = await services.eligibility_eval_tasks.request_eligibility_eval_task(
            request, principal
        )
        if response.WhichOneof("result") == "rejection_info":
            tell("the device is sent away at check-in")
            return
        tell("the device asks for a task")
        operation = await self._wait(await self._start(response.session_id, principal), principal)
        answer = assignments_pb2.StartTaskAssignmentResponse()
        if not operation.done:
            tell(f"after {PATIENCE} seconds of its own time, the device gives up waiting")
            return
        if not operation.response.Unpack(answer) or not answer.HasField("task_assignment"):
            tell("the device is sent away without a task")
            return
        tell("the device contributes")
        await self._contribute(answer.task_assignment, principal)
        await services.tasks.wait(task)

    async def _start(self, session_id: str, principal: str | None) -> longrunning.Operation:
        request = assignments_pb2.StartTaskAssignmentRequest(
            population_name=self._population, session_id=session_id
        )
        # It is eligible, whatever the policies ask.
        request.task_eligibility_info.version = 1
        request.task_eligibility_info.task_weights.add(task_name=TASK, weight=1.0)
        return await self._services.task_assignments.start_task_assignment(request, principal)

    async def _wait(
        self, operation: longrunning.Operation, principal: str | None
    ) -> longrunning.Operation:
        waited = 0
        while not operation.done and waited < PATIENCE:
            waited += 1
            self._clock.advance(1.0)
            self._services.ticker.run_due()
            request = longrunning.GetOperationRequest(name=operation.name)
            operation = await self._services.operations.get_operation(request, principal)
        return operation

    async def _contribute(
        self, assignment: assignments_pb2.TaskAssignment, principal: str | None
    ) -> None:
        services = self._services
        operation = await self._call(
            "StartAggregationDataUpload",
            aggregations_pb2.StartAggregationDataUploadRequest(
                aggregation_id=assignment.aggregation_id,
                authorization_token=assignment.authorization_token,
            ),
            principal,
        )
        ticket = aggregations_pb2.StartAggregationDataUploadResponse()
        operation.response.Unpack(ticket)
        name = ticket.resource.resource_name
        await services.media.begin_upload(name)
        await services.media.finish_upload(
            name, write_checkpoint({"value": np.array(1, np.int64)}, "tf_v1")
        )
        await self._call(
            "SubmitAggregationResult",
            aggregations_pb2.SubmitAggregationResultRequest(
                aggregation_id=assignment.aggregation_id,
                client_token=ticket.client_token,
                resource_name=name,
            ),
            principal,
        )

    async def _call(self, method: str, request: Any, principal: str | None) -> Any:
        serve = self._services.method(routes.named(f"Aggregations.{method}"))
        assert serve is not None  # the plain protocol's service is always there
        return await serve(request, principal)


def _task(population: str) -> TaskSpec:
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("value", DataType.INT64),),
        (TensorSpec("sum", DataType.INT64),),
    )
    return TaskSpec(
        population=population,
        name=TASK,
        plan=b"",
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=1,
        protocol="simple",
    )
