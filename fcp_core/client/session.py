"""One session with the server, in the protocol's order."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fcp_core.client.calls import Calls
from fcp_core.client.eligibility import UNCONFIGURED, Eligibility, EligibilityDecider
from fcp_core.client.eligibility_plan import EligibilityPlan
from fcp_core.client.executors import SliceSource
from fcp_core.client.operations import parse
from fcp_core.client.resources import Router, fetch, fetch_all, is_set
from fcp_core.client.results import Outcome, TaskOutcome, TaskResult
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.tasks import AssignedTask, Device, TaskRunner
from fcp_core.client.transport import Endpoint, Transport
from fcp_core.protocol.protos import population_eligibility_spec_pb2
from fcp_core.protocol.status import Code, StatusError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

# What failed before its contribution was complete; a refused submission is not among them.
_UNREPORTED = (TaskOutcome.UPLOAD_FAILED,)


class Session:
    """Checks in, takes what tasks there are, runs and reports them.

    :param entry_point: the server's address.
    :param schedule: told what happens, so that it can say when to come back.
    """

    def __init__(
        self,
        device: Device,
        calls: Calls,
        transport: Transport,
        entry_point: str,
        pool: ThreadPoolExecutor,
        schedule: RetrySchedule,
    ) -> None:
        self._device = device
        self._calls = calls
        self._transport = transport
        self._pool = pool
        self._schedule = schedule
        self._router = Router(entry_point)
        self._runner = TaskRunner(device, calls, transport, self._router, pool)
        self._session_id = ""
        self._reported = True
        self.tasks: list[TaskResult] = []
        self.error: StatusError | None = None

    def run(self) -> Outcome:
        """Go through the session and return how it ended; never raises a ``StatusError``."""
        try:
            return self._run()
        except StatusError as error:
            self.error = error
            self._schedule.fail(error.code)
            # An interruption is the owner's own wish, and nothing to warn of.
            level = logging.INFO if error.code is Code.CANCELLED else logging.WARNING
            _LOG.log(level, "session failed: %s", error)
            return self._outcome(Outcome.FAILED)

    def _run(self) -> Outcome:
        response = self._calls.request_eligibility(self._router.entry)
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
            eligibility = self._evaluate(response.eligibility_eval_task)
        self._reported = not eligibility.enabled
        if eligibility.multiple_tasks:
            self._run_multiple(assignments, eligibility)
        if eligibility.may_start:
            return self._run_single(assignments, eligibility)
        if not self.tasks and self.error is None:
            self._schedule.reject()
        return self._outcome(Outcome.NO_TASK)

    def _evaluate(self, task: Any) -> Eligibility:
        """Return what the device is eligible for; report it if that cannot be told."""
        try:
            # One of no bytes is a specification too: that of a population without tasks.
            if task.population_eligibility_spec.WhichOneof("resource") is None:
                plan = self._eligibility_plan(task)
                if plan is None:
                    return UNCONFIGURED
                return Eligibility(plan.weights(), multiple_tasks=(), may_start=True)
            spec = parse(
                population_eligibility_spec_pb2.PopulationEligibilitySpec,
                fetch(self._transport, task.population_eligibility_spec),
                "the population eligibility specification",
            )
            device = self._device
            decider = EligibilityDecider(
                device.population,
                device.store,
                device.history,
                device.now,
                self._eligibility_plan(task),
            )
            return decider.decide(spec)
        except StatusError as error:
            self._calls.report_eligibility(self._router.entry, self._session_id, error.code)()
            raise

    def _eligibility_plan(self, task: Any) -> EligibilityPlan | None:
        """Fetch the plan that evaluates eligibility, if there is one with a checkpoint."""
        if not (is_set(task.plan) and is_set(task.init_checkpoint)):
            return None
        device = self._device
        parts = []
        for part in fetch_all(self._pool, self._transport, (task.plan, task.init_checkpoint)):
            if isinstance(part, StatusError):
                raise part
            parts.append(part)
        plan, checkpoint = parts
        return EligibilityPlan(
            plan,
            checkpoint,
            device.executors,
            device.store,
            SliceSource(self._transport, self._pool, ""),
            self._transport.interruption,
        )

    def _run_multiple(self, assignments: Endpoint, eligibility: Eligibility) -> None:
        """Take and run the tasks that are asked for by name; failures concern them alone."""
        names = eligibility.multiple_tasks
        try:
            response = self._with_report(
                lambda: self._calls.perform_multiple(assignments, self._session_id, names)
            )
        except StatusError as error:
            if error.code is Code.CANCELLED:
                raise
            self.error = error
            self._schedule.fail(error.code)
            _LOG.warning("multiple assignment failed: %s", error)
            return
        wanted = []
        for assignment in response.task_assignments:
            if assignment.task_name in names:
                wanted.append(assignment)
            else:
                _LOG.warning("the server sent task %r unasked", assignment.task_name)
        received = self._runner.receive(wanted)
        self._transport.interruption.check()
        for assignment, task in zip(wanted, received, strict=True):
            if isinstance(task, StatusError):
                self.error = task
                self._schedule.fail(task.code)
                _LOG.warning("task %r dropped: %s", assignment.task_name, task)
        for task in received:
            if isinstance(task, AssignedTask):
                self._run_task(task, assignments)
        if self.tasks:
            self._settle()

    def _run_single(self, assignments: Endpoint, eligibility: Eligibility) -> Outcome:
        start = functools.partial(
            self._calls.start_assignment, assignments, self._session_id, eligibility.info()
        )
        response = self._with_report(start)
        kind = response.WhichOneof("result")
        if kind is None:
            raise StatusError(Code.INVALID_ARGUMENT, "the assignment response holds no result")
        if kind == "rejection_info":
            self._schedule.reject()
            return self._outcome(Outcome.REJECTED)
        (task,) = self._runner.receive([response.task_assignment])
        if isinstance(task, StatusError):
            raise task
        self._run_task(task, assignments)
        self._settle()
        return self._outcome(Outcome.FAILED)

    def _with_report(self, call: Callable[[], T]) -> T:
        """Make *call*; at the same time report the eligibility result if that is still due."""
        if self._reported:
            return call()
        self._reported = True
        reported = self._calls.report_eligibility(self._router.entry, self._session_id, Code.OK)
        try:
            return call()
        finally:
            reported()

    def _run_task(self, task: AssignedTask, assignments: Endpoint) -> None:
        result = self._runner.run(task, assignments)
        self.tasks.append(result)
        if result.error is not None:
            _LOG.info("task %r: %s (%s)", result.task_name, result.outcome.value, result.error)
            self._transport.interruption.check()

    def _settle(self) -> None:
        """Choose the retry window by what became of the tasks so far."""
        failed = sum(result.outcome in _UNREPORTED for result in self.tasks)
        if failed == 0:
            self._schedule.accept()
        elif failed == len(self.tasks):
            self._schedule.fail_permanently()
        else:
            self._schedule.reject()

    def _outcome(self, otherwise: Outcome) -> Outcome:
        if any(result.outcome is TaskOutcome.CONTRIBUTED for result in self.tasks):
            return Outcome.CONTRIBUTED
        if self.tasks or (self.error is not None and otherwise is Outcome.NO_TASK):
            return Outcome.FAILED
        return otherwise
