"""One assigned task from its payload to its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from fcp_core.client.calls import Calls
from fcp_core.client.executors import (
    InsufficientDataError,
    PlanExecutor,
    PlanRun,
    SliceSource,
    run_plan,
)
from fcp_core.client.history import History
from fcp_core.client.resources import Router, fetch_all
from fcp_core.client.results import TaskOutcome, TaskResult
from fcp_core.client.stores import ExampleStore
from fcp_core.client.transport import Endpoint, Transport
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What a device brings to a session.

    :param executors: by plan kind.
    :param history: its contributions, if it keeps any.
    :param name: the session's name in the history.
    :param now: the time in seconds since the epoch.
    """

    population: str
    store: ExampleStore
    executors: Mapping[str, PlanExecutor]
    history: History | None
    name: str
    now: Callable[[], float]


@dataclass(frozen=True)
class AssignedTask:
    """A ``TaskAssignment`` with its payload fetched.

    :param data_endpoint: where its upload is started.
    """

    assignment: Any
    data_endpoint: Endpoint
    plan: bytes
    checkpoint: bytes


@dataclass(frozen=True)
class _Computed:
    """What running a plan came to: a checkpoint, or an error."""

    seconds: float
    checkpoint: bytes = b""
    error: StatusError | None = None
    separation_index: int | None = None


class TaskRunner:
    """Fetches, runs and reports tasks.

    :param pool: runs what happens at the same time as something else.
    """

    def __init__(
        self,
        device: Device,
        calls: Calls,
        transport: Transport,
        router: Router,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._device = device
        self._calls = calls
        self._transport = transport
        self._router = router
        self._pool = pool

    def receive(self, assignments: Sequence[Any]) -> list[AssignedTask | StatusError]:
        """Check assignments and fetch their plans and checkpoints, all at once.

        :returns: for each assignment the task, or why there is none: INVALID_ARGUMENT if this
            client cannot serve it, or the status of a download that failed.
        """
        endpoints = [self._check(assignment) for assignment in assignments]
        resources = [
            resource
            for assignment, endpoint in zip(assignments, endpoints, strict=True)
            if isinstance(endpoint, Endpoint)
            for resource in (assignment.plan, assignment.init_checkpoint)
        ]
        fetched = iter(fetch_all(self._pool, self._transport, resources))
        received: list[AssignedTask | StatusError] = []
        for assignment, endpoint in zip(assignments, endpoints, strict=True):
            if isinstance(endpoint, StatusError):
                received.append(endpoint)
                continue
            plan, checkpoint = next(fetched), next(fetched)
            if isinstance(plan, StatusError):
                received.append(plan)
            elif isinstance(checkpoint, StatusError):
                received.append(checkpoint)
            else:
                received.append(AssignedTask(assignment, endpoint, plan, checkpoint))
        return received

    def _check(self, assignment: Any) -> Endpoint | StatusError:
        """Return where an assignment's upload is started, or why the client cannot serve it."""
        try:
            endpoint = self._router.resolve(
                assignment.aggregation_data_forwarding_info,
                "aggregation_data_forwarding_info",
                remember=True,
            )
        except StatusError as error:
            return error
        kind = assignment.WhichOneof("aggregation_type")
        if kind in ("confidential_aggregation_info", "willow_aggregation_info"):
            return StatusError(
                Code.INVALID_ARGUMENT, f"task {assignment.task_name!r} wants {kind}, which is off"
            )
        return endpoint

    def run(self, task: AssignedTask, endpoint: Endpoint) -> TaskResult:
        """Run a task and report it, whatever comes of it.

        :param endpoint: where task results are reported.
        """
        computed = self._compute(task)
        if computed.error is not None:
            _LOG.warning("task %r failed: %s", task.assignment.task_name, computed.error)
            self._calls.report_task(
                endpoint, task.assignment, _reported(computed.error), computed.seconds
            )()
            return self._result(task, TaskOutcome.COMPUTATION_FAILED, computed)
        return self._contribute(task, endpoint, computed)

    def _compute(self, task: AssignedTask) -> _Computed:
        started = time.perf_counter()
        separation_index = None
        try:
            try:
                plan = plan_pb2.ClientOnlyPlan.FromString(task.plan)
            except DecodeError as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"the plan is not a ClientOnlyPlan: {error}"
                ) from error
            if plan.client_persisted_data.HasField("min_sep_policy_index"):
                separation_index = plan.client_persisted_data.min_sep_policy_index
            template = task.assignment.federated_select_uri_info.uri_template
            checkpoint = run_plan(
                self._device.executors,
                PlanRun(
                    plan=plan,
                    checkpoint=task.checkpoint,
                    store=self._device.store,
                    slices=SliceSource(self._transport, self._pool, template),
                    interruption=self._transport.interruption,
                ),
            )
        except StatusError as error:
            return _Computed(time.perf_counter() - started, error=error)
        except UsageError as error:  # a package is missing, as TensorFlow may be
            failure = StatusError(Code.UNIMPLEMENTED, str(error))
            failure.__cause__ = error
            return _Computed(time.perf_counter() - started, error=failure)
        except Exception as error:
            # Stores and executors may be anybody's code; a fault in them must not take down the
            # device, and the server should hear of it.
            _LOG.exception("task %r failed unexpectedly", task.assignment.task_name)
            failure = StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            return _Computed(time.perf_counter() - started, error=failure)
        seconds = time.perf_counter() - started
        return _Computed(seconds, checkpoint, separation_index=separation_index)

    def _contribute(
        self, task: AssignedTask, endpoint: Endpoint, computed: _Computed
    ) -> TaskResult:
        assignment = task.assignment
        remembered = self._remember(assignment, computed)
        reported = self._calls.report_task(endpoint, assignment, Code.OK, computed.seconds)
        try:
            started = self._calls.start_upload(task.data_endpoint, assignment)
            protocol = self._router.resolve(
                started.aggregation_protocol_forwarding_info,
                "aggregation_protocol_forwarding_info",
            )
            upload = self._router.resolve(
                started.resource.data_upload_forwarding_info, "data_upload_forwarding_info"
            )
        except StatusError as error:
            self._forget(remembered)
            return self._result(task, TaskOutcome.UPLOAD_FAILED, computed, error)
        finally:
            reported()
        name, token = started.resource.resource_name, started.client_token
        try:
            self._transport.interruption.check()
            uploaded = self._transport.upload(upload, name, computed.checkpoint)
        except StatusError as error:
            if error.code is Code.ABORTED:
                self._forget(remembered)  # the server ended it: nothing to tell it
            else:
                self._calls.abort(protocol, assignment.aggregation_id, token, error)
            return self._result(task, TaskOutcome.UPLOAD_FAILED, computed, error)
        try:
            self._calls.submit(protocol, assignment.aggregation_id, token, name)
        except StatusError as error:
            if error.code is Code.ABORTED:
                self._forget(remembered)
            return self._result(task, TaskOutcome.SUBMIT_FAILED, computed, error, uploaded)
        return self._result(task, TaskOutcome.CONTRIBUTED, computed, uploaded=uploaded)

    def _remember(self, assignment: Any, computed: _Computed) -> int | None:
        # Noted before the first byte leaves: what becomes of a contribution whose answer is lost
        # is unknown, and the policies that ask must not count too few.
        history = self._device.history
        if history is None:
            return None
        return history.add(
            self._device.population,
            assignment.task_name,
            self._device.now(),
            session=self._device.name,
            separation_index=computed.separation_index,
        )

    def _forget(self, remembered: int | None) -> None:
        if remembered is not None and self._device.history is not None:
            self._device.history.withdraw(remembered)

    def _result(
        self,
        task: AssignedTask,
        outcome: TaskOutcome,
        computed: _Computed,
        error: StatusError | None = None,
        uploaded: int = 0,
    ) -> TaskResult:
        return TaskResult(
            task_name=task.assignment.task_name,
            aggregation_id=task.assignment.aggregation_id,
            outcome=outcome,
            error=error or computed.error,
            computation_seconds=computed.seconds,
            checkpoint_bytes=len(computed.checkpoint),
            uploaded_bytes=uploaded,
        )


def _reported(error: StatusError) -> Code:
    if isinstance(error, InsufficientDataError):
        return Code.FAILED_PRECONDITION
    return Code.CANCELLED if error.code is Code.CANCELLED else Code.INTERNAL
