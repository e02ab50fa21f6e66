"""One session with the server, in the protocol's order: a machine without input or output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from fcp_core.client.addresses import Endpoint, Router
from fcp_core.client.cache import ResourceCache
from fcp_core.client.calls import Calls, gzip_body, is_set
from fcp_core.client.eligibility import UNCONFIGURED, Eligibility
from fcp_core.client.limits import Limits
from fcp_core.client.operations import parse
from fcp_core.client.protocols import DeviceProtocol
from fcp_core.client.results import Outcome, TaskOutcome, TaskResult
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.steps import Concurrently, Evaluate, Sleep, Steps
from fcp_core.client.tasks import AssignedTask, TaskRunner
from fcp_core.protocol.protos import (
    common_pb2,
    eligibility_eval_tasks_pb2,
    population_eligibility_spec_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# What failed before its contribution was complete; a refused submission is not among them.
_UNREPORTED = (TaskOutcome.UPLOAD_FAILED,)
_REPORT_ELIGIBILITY = "EligibilityEvalTasks.ReportEligibilityEvalTaskResult"


@dataclass(frozen=True)
class DeviceSettings:
    """What a device says of itself, and how it speaks.

    :param entry_point: the server's address.
    :param api_key: sent with every protocol request, even if empty.
    :param client_version: sent as the version code, as is *attestation_measurement*.
    :param encode: compresses bodies with gzip, or returns None for one that is better sent as it
        is; None: so are all of them, and resources must not be compressed either.
    :param cache: what was downloaded in other sessions and may be kept.
    :param protocols: aggregation protocols beside the plain one, which are asked before it.
    :param content_bytes: how large a resource may be once it is decompressed.
    :param any_address: whether plain HTTP to other machines is allowed, as in a load test.
    """

    entry_point: str
    population: str
    api_key: str = ""
    client_version: str = ""
    attestation_measurement: str = ""
    encode: Callable[[bytes], bytes | None] | None = gzip_body
    cache: ResourceCache | None = None
    protocols: Sequence[DeviceProtocol] = field(default=())
    content_bytes: int = Limits.content_bytes
    any_address: bool = False

    @cached_property
    def about(self) -> dict[str, Any]:
        """What every request for a task says of the device, by field."""
        gzip_format = common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP
        about: dict[str, Any] = {
            "client_version": common_pb2.ClientVersion(version_code=self.client_version),
            "resource_capabilities": common_pb2.ResourceCapabilities(
                supported_compression_formats=[] if self.encode is None else [gzip_format]
            ),
        }
        if self.attestation_measurement:
            about["attestation_measurement"] = common_pb2.AttestationMeasurement(
                value=self.attestation_measurement
            )
        return about


@dataclass(frozen=True)
class SessionEnd:
    """How a session ended.

    :param tasks: those that were run, in order.
    :param error: why the session failed; None if it did not, or only its tasks did.
    """

    outcome: Outcome
    tasks: tuple[TaskResult, ...]
    error: StatusError | None


def device_session(settings: DeviceSettings, schedule: RetrySchedule) -> Steps[SessionEnd]:
    """Check in, take what tasks there are, run and report them.

    Whatever goes wrong is in what is returned.

    :param schedule: notified of what happens, so that it can say when to come back.
    """
    return (yield from _Session(settings, schedule).run())


class _Session:
    def __init__(self, settings: DeviceSettings, schedule: RetrySchedule) -> None:
        self._settings = settings
        self._schedule = schedule
        headers = {"x-goog-api-key": settings.api_key}
        self._router = Router(settings.entry_point, headers, any_address=settings.any_address)
        self._calls = Calls(self._router, settings.encode, settings.cache, settings.content_bytes)
        self._runner = TaskRunner(
            settings.population, self._calls, self._router, settings.protocols
        )
        self._session_id = ""
        self._reported = True
        self._tasks: list[TaskResult] = []
        self._error: StatusError | None = None

    def run(self) -> Steps[SessionEnd]:
        try:
            outcome = yield from self._run()
        except StatusError as error:
            self._error = error
            self._schedule.fail(error.code)
            # An interruption is the owner's own wish, and nothing to warn of.
            level = logging.INFO if error.code is Code.CANCELLED else logging.WARNING
            _LOG.log(level, "session failed: %s", error)
            outcome = self._outcome(Outcome.FAILED)
        return SessionEnd(outcome, tuple(self._tasks), self._error)

    def _run(self) -> Steps[Outcome]:
        response = yield from self._check_in()
        self._schedule.receive(response)
        kind = response.WhichOneof("result")
        if kind == "rejection_info":
            self._schedule.reject()
            return Outcome.REJECTED
        if kind is None:
            raise StatusError(Code.INVALID_ARGUMENT, "the eligibility response holds no result")
        self._session_id = response.session_id
        assignments = self._router.resolve(
            response.task_assignment_forwarding_info,
            "task_assignment_forwarding_info",
            remember=True,
        )
        eligibility = UNCONFIGURED
        if kind == "eligibility_eval_task":
            eligibility = yield from self._evaluate(response.eligibility_eval_task)
        self._reported = not eligibility.enabled
        if eligibility.multiple_tasks:
            yield from self._run_multiple(assignments, eligibility)
        if eligibility.may_start:
            return (yield from self._run_single(assignments, eligibility))
        if not self._tasks and self._error is None:
            self._schedule.reject()
        return self._outcome(Outcome.NO_TASK)

    def _check_in(self) -> Steps[Any]:
        request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest(
            population_name=self._settings.population,
            **self._settings.about,
            eligibility_eval_task_capabilities=(
                eligibility_eval_tasks_pb2.EligibilityEvalTaskCapabilities(
                    supports_multiple_task_assignment=True, supports_native_eets=True
                )
            ),
        )
        name = "EligibilityEvalTasks.RequestEligibilityEvalTask"
        return (yield from self._calls.call(self._router.entry, name, request))

    def _evaluate(self, task: Any) -> Steps[Eligibility]:
        """Return what the device is eligible for; report it if that cannot be told."""
        try:
            # One of no bytes is a specification too: that of a population without tasks.
            spec = None
            if task.population_eligibility_spec.WhichOneof("resource") is not None:
                spec = parse(
                    population_eligibility_spec_pb2.PopulationEligibilitySpec,
                    (
                        yield from self._calls.fetch(
                            task.population_eligibility_spec, "specification"
                        )
                    ),
                    "the population eligibility specification",
                )
            plan = yield from self._eligibility_plan(task)
            if spec is None and plan is None:
                return UNCONFIGURED
            found: Eligibility = yield Evaluate(spec, plan)
            return found
        except StatusError as error:
            yield from self._report_eligibility(error.code)
            raise

    def _eligibility_plan(self, task: Any) -> Steps[tuple[bytes, bytes] | None]:
        """Fetch the plan that evaluates eligibility, if there is one with a checkpoint."""
        if not (is_set(task.plan) and is_set(task.init_checkpoint)):
            return None
        parts: list[bytes] = []
        for part in (yield from self._calls.fetch_all((task.plan, task.init_checkpoint))):
            if isinstance(part, StatusError):
                raise part
            parts.append(part)
        return parts[0], parts[1]

    def _run_multiple(self, assignments: Endpoint, eligibility: Eligibility) -> Steps[None]:
        """Take and run the tasks that are asked for by name; failures concern them alone."""
        names = eligibility.multiple_tasks
        request = task_assignments_pb2.PerformMultipleTaskAssignmentsRequest(
            population_name=self._settings.population,
            session_id=self._session_id,
            **self._settings.about,
            task_names=names,
        )
        name = "TaskAssignments.PerformMultipleTaskAssignments"
        try:
            response = yield from self._with_report(self._calls.call(assignments, name, request))
        except StatusError as error:
            if error.code is Code.CANCELLED:
                raise
            self._fail(error, "multiple assignment failed: %s", error)
            return
        wanted = []
        for assignment in response.task_assignments:
            if assignment.task_name in names:
                wanted.append(assignment)
            else:
                _LOG.warning("the server sent task %r unasked", assignment.task_name)
        received = yield from self._runner.receive(wanted)
        yield Sleep(0)
        for assignment, task in zip(wanted, received, strict=True):
            if isinstance(task, StatusError):
                self._fail(task, "task %r dropped: %s", assignment.task_name, task)
        for task in received:
            if isinstance(task, AssignedTask):
                yield from self._run_task(task, assignments)
        if self._tasks:
            self._choose_window()

    def _run_single(self, assignments: Endpoint, eligibility: Eligibility) -> Steps[Outcome]:
        request = task_assignments_pb2.StartTaskAssignmentRequest(
            population_name=self._settings.population,
            session_id=self._session_id,
            **self._settings.about,
            task_eligibility_info=eligibility.info(),
        )
        name = "TaskAssignments.StartTaskAssignment"
        response = yield from self._with_report(self._calls.call(assignments, name, request))
        kind = response.WhichOneof("result")
        if kind is None:
            raise StatusError(Code.INVALID_ARGUMENT, "the assignment response holds no result")
        if kind == "rejection_info":
            self._schedule.reject()
            return self._outcome(Outcome.REJECTED)
        (task,) = yield from self._runner.receive([response.task_assignment])
        if isinstance(task, StatusError):
            raise task
        yield from self._run_task(task, assignments)
        self._choose_window()
        return self._outcome(Outcome.FAILED)

    def _with_report(self, call: Steps[T]) -> Steps[T]:
        """Make *call*; at the same time report the eligibility result if that is still due."""
        if self._reported:
            return (yield from call)
        self._reported = True
        _, answer = yield Concurrently((self._report_eligibility(Code.OK), call))
        return answer  # type: ignore[no-any-return]

    def _report_eligibility(self, code: Code) -> Steps[None]:
        status_code: Any = int(code)
        request = eligibility_eval_tasks_pb2.ReportEligibilityEvalTaskResultRequest(
            population_name=self._settings.population,
            session_id=self._session_id,
            status_code=status_code,
        )
        yield from self._calls.mention(self._router.entry, _REPORT_ELIGIBILITY, request)

    def _run_task(self, task: AssignedTask, assignments: Endpoint) -> Steps[None]:
        result = yield from self._runner.run(task, assignments)
        self._tasks.append(result)
        if result.error is not None:
            _LOG.info("task %r: %s (%s)", result.task_name, result.outcome.value, result.error)
            yield Sleep(0)

    def _fail(self, error: StatusError, message: str, *arguments: object) -> None:
        """Note a failure that does not end the session."""
        self._error = error
        self._schedule.fail(error.code)
        _LOG.warning(message, *arguments)

    def _choose_window(self) -> None:
        """Choose the retry window by what became of the tasks so far."""
        failed = sum(result.outcome in _UNREPORTED for result in self._tasks)
        if failed == 0:
            self._schedule.accept()
        elif failed == len(self._tasks):
            self._schedule.fail_permanently()
        else:
            self._schedule.reject()

    def _outcome(self, otherwise: Outcome) -> Outcome:
        if any(result.outcome is TaskOutcome.CONTRIBUTED for result in self._tasks):
            return Outcome.CONTRIBUTED
        if self._tasks or (self._error is not None and otherwise is Outcome.NO_TASK):
            return Outcome.FAILED
        return otherwise
