"""One assigned task from its payload to its report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fcp_core.client.addresses import Endpoint, Router
from fcp_core.client.calls import Calls
from fcp_core.client.executors import InsufficientDataError
from fcp_core.client.plain import PlainUpload
from fcp_core.client.privacy import RefusedError
from fcp_core.client.protocols import CallStep, DeviceProtocol, Step, Together, UploadStep
from fcp_core.client.results import TaskOutcome, TaskResult
from fcp_core.client.steps import Compute, Computed, Concurrently, Forget, Remember, Steps
from fcp_core.errors import describe, plugin_errors
from fcp_core.protocol.protos import task_assignments_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Duration

_LOG = logging.getLogger(__name__)
_FORWARDING = "aggregation_data_forwarding_info"


@dataclass(frozen=True)
class AssignedTask:
    """A ``TaskAssignment`` with its payload fetched.

    :param assignment: where its contribution goes is absolute.
    :param protocol: how it is contributed to.
    """

    assignment: Any
    protocol: DeviceProtocol
    plan: bytes
    checkpoint: bytes


class TaskRunner:
    """Fetches, runs and reports tasks.

    :param population: the population's name.
    :param protocols: asked in their order; plain aggregation comes last.
    """

    def __init__(
        self, population: str, calls: Calls, router: Router, protocols: Sequence[DeviceProtocol]
    ) -> None:
        self._population = population
        self._calls = calls
        self._router = router
        self._protocols = (*protocols, PlainUpload())

    def receive(self, assignments: Sequence[Any]) -> Steps[list[AssignedTask | StatusError]]:
        """Check assignments and fetch their plans and checkpoints, all at once.

        :returns: for each assignment the task, or why there is none: INVALID_ARGUMENT if this
            client cannot serve it, or the status of a download that failed.
        """
        checked = [self._check(assignment) for assignment in assignments]
        resources = [
            resource
            for found, assignment in zip(checked, assignments, strict=True)
            if not isinstance(found, StatusError)
            for resource in (assignment.plan, assignment.init_checkpoint)
        ]
        fetched = iter((yield from self._calls.fetch_all(resources)))
        received: list[AssignedTask | StatusError] = []
        for found, assignment in zip(checked, assignments, strict=True):
            if isinstance(found, StatusError):
                received.append(found)
                continue
            plan, checkpoint = next(fetched), next(fetched)
            if isinstance(plan, StatusError):
                received.append(plan)
            elif isinstance(checkpoint, StatusError):
                received.append(checkpoint)
            else:
                received.append(AssignedTask(assignment, found, plan, checkpoint))
        return received

    def _check(self, assignment: Any) -> DeviceProtocol | StatusError:
        """Return how an assignment is contributed to, or why the client cannot serve it."""
        info = assignment.aggregation_data_forwarding_info
        try:
            endpoint = self._router.resolve(info, _FORWARDING, remember=True)
        except StatusError as error:
            return error
        info.target_uri_prefix = endpoint.base
        for protocol in self._protocols:
            if protocol.accepts(assignment):
                return protocol
        kind = assignment.WhichOneof("aggregation_type")
        return StatusError(
            Code.INVALID_ARGUMENT, f"task {assignment.task_name!r} wants {kind}, which is off"
        )

    def run(self, task: AssignedTask, endpoint: Endpoint) -> Steps[TaskResult]:
        """Run a task and report it, whatever comes of it.

        :param endpoint: where task results are reported.
        """
        computed = yield Compute(task.assignment, task.plan, task.checkpoint)
        if computed.error is not None:
            refused = isinstance(computed.error, RefusedError)
            how = "is refused" if refused else "failed"
            _LOG.warning("task %r %s: %s", task.assignment.task_name, how, computed.error.message)
            yield from self._report(endpoint, task.assignment, computed)
            outcome = TaskOutcome.REFUSED if refused else TaskOutcome.COMPUTATION_FAILED
            return _result(task, outcome, computed, computed.error)
        return (yield from self._contribute(task, endpoint, computed))

    def _contribute(
        self, task: AssignedTask, endpoint: Endpoint, computed: Computed
    ) -> Steps[TaskResult]:
        # Noted before the first byte leaves: what becomes of a contribution whose answer is lost
        # is unknown, and the policies that ask must not count too few.
        name = task.assignment.task_name
        note = yield Remember(name, computed.separation_index, computed.statement)
        report = self._report(endpoint, task.assignment, computed)
        contribution = _Contribution(self._calls, self._router)
        try:
            yield from contribution.run(task, computed, report)
        except StatusError as error:
            if error.code is Code.ABORTED or not contribution.uploading:
                yield Forget(note)
            complete = contribution.uploaded and not contribution.upload_failed
            comes_back = complete or error.code in task.protocol.comes_back
            outcome = TaskOutcome.SUBMIT_FAILED if comes_back else TaskOutcome.UPLOAD_FAILED
            return _result(task, outcome, computed, error, contribution.uploaded)
        return _result(task, TaskOutcome.CONTRIBUTED, computed, uploaded=contribution.uploaded)

    def _report(self, endpoint: Endpoint, assignment: Any, computed: Computed) -> Steps[None]:
        nanos = round(computed.seconds * 1e9)
        duration = Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
        code: Any = int(_reported(computed.error))
        request = task_assignments_pb2.ReportTaskResultRequest(
            population_name=self._population,
            session_id=assignment.session_id,
            computation_status_code=code,
            task_name=assignment.task_name,
            aggregation_id=assignment.aggregation_id,
            client_stats=task_assignments_pb2.ClientStats(computation_execution_duration=duration),
        )
        yield from self._calls.mention(endpoint, "TaskAssignments.ReportTaskResult", request)


class _Contribution:
    """Carries out the steps of a protocol, and keeps how far they came.

    :ivar uploading: whether an upload was begun.
    :ivar upload_failed: whether one failed.
    :ivar uploaded: how many bytes were uploaded.
    """

    def __init__(self, calls: Calls, router: Router) -> None:
        self._calls = calls
        self._router = router
        self.uploading = False
        self.upload_failed = False
        self.uploaded = 0

    def run(self, task: AssignedTask, computed: Computed, report: Steps[None]) -> Steps[None]:
        """Contribute.

        :param report: of the computation; it goes out beside the first step.
        :raises StatusError: how the contribution ended; INTERNAL if the protocol has a fault.
        """
        protocol = task.protocol.contribute(task.assignment, computed.results)
        answer: Any = None
        error: StatusError | None = None
        reported = False
        try:
            while True:
                step = protocol.send(answer) if error is None else protocol.throw(error)
                answer, error = None, None
                try:
                    if reported:
                        answer = yield from self._perform(step)
                    else:
                        reported = True
                        _, answer = yield Concurrently((report, self._perform(step)))
                except StatusError as failure:
                    error = failure
        except StopIteration:
            ending = None
        except StatusError as failure:
            ending = failure
        except plugin_errors(awaited=True) as fault:
            # Protocols are anybody's code; a fault in one must not take down the device.
            _LOG.exception("task %r: its protocol failed", task.assignment.task_name)
            ending = StatusError(Code.INTERNAL, describe(fault))
            ending.__cause__ = fault
        finally:
            protocol.close()
        if not reported:
            yield from report
        if ending is not None:
            raise ending

    def _perform(self, step: Step) -> Steps[Any]:
        if isinstance(step, Together):
            return (yield Concurrently(tuple(self._perform(part) for part in step.steps)))
        if isinstance(step, UploadStep):
            return (yield from self._upload(step))
        return (yield from self._call(step))

    def _call(self, step: CallStep) -> Steps[Any]:
        try:
            endpoint = self._router.resolve(step.forwarding, f"address for {step.route}")
            if step.best_effort:
                return (yield from self._calls.mention(endpoint, step.route, step.request))
            return (yield from self._calls.call(endpoint, step.route, step.request))
        except StatusError:
            if step.best_effort:
                return None
            raise

    def _upload(self, step: UploadStep) -> Steps[int]:
        try:
            endpoint = self._router.resolve(
                step.resource.data_upload_forwarding_info, "data_upload_forwarding_info"
            )
            self.uploading = True
            sent = yield from self._calls.upload(endpoint, step.resource, step.data, step.compress)
        except StatusError:
            self.upload_failed = True
            raise
        self.uploaded += sent
        return sent


def _result(
    task: AssignedTask,
    outcome: TaskOutcome,
    computed: Computed,
    error: StatusError | None = None,
    uploaded: int = 0,
) -> TaskResult:
    return TaskResult(
        task_name=task.assignment.task_name,
        aggregation_id=task.assignment.aggregation_id,
        outcome=outcome,
        error=error,
        computation_seconds=computed.seconds,
        checkpoint_bytes=len(computed.results.checkpoint),
        uploaded_bytes=uploaded,
    )


def _reported(error: StatusError | None) -> Code:
    if error is None:
        return Code.OK
    if isinstance(error, (InsufficientDataError, RefusedError)):
        return error.code
    return Code.CANCELLED if error.code is Code.CANCELLED else Code.INTERNAL
