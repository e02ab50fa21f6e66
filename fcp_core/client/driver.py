"""Carries out a device session on the calling thread: HTTP, executors, the history."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from fcp_core.client.eligibility import Eligibility, EligibilityDecider
from fcp_core.client.eligibility_plan import EligibilityPlan
from fcp_core.client.executors import PlanExecutor, PlanRun, SliceSource, run_plan
from fcp_core.client.history import History
from fcp_core.client.interruption import Interruption
from fcp_core.client.limits import Limits
from fcp_core.client.privacy import Admission, GuardedStore, PrivacyPolicy, check_plan
from fcp_core.client.protocols import PlanResults
from fcp_core.client.recording import ELIGIBILITY, Recorder
from fcp_core.client.steps import (
    Compute,
    Computed,
    Concurrently,
    Evaluate,
    Remember,
    Request,
    SessionStep,
    Sleep,
    Steps,
)
from fcp_core.client.stores import ExampleStore
from fcp_core.client.transport import Sent, Transport
from fcp_core.errors import UsageError, plugin_errors
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.statement import statement_of
from fcp_core.protocol.status import Code, StatusError

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """What a device brings to a session.

    :param executors: by plan kind.
    :param history: its contributions, if it keeps any.
    :param name: the session's name in the history.
    :param now: the time in seconds since the epoch.
    :param plan_seconds: that a plan may run.
    :param privacy: what its owner allows; None: everything.
    """

    population: str
    store: ExampleStore
    executors: Mapping[str, PlanExecutor]
    history: History | None
    name: str
    now: Callable[[], float]
    plan_seconds: float = Limits.plan_seconds
    privacy: PrivacyPolicy | None = None


@dataclass
class _Begun:
    """A part whose first step was begun."""

    part: Steps[Any]
    step: SessionStep | Sent | None
    result: Any = None
    error: StatusError | None = None


class BlockingDriver:
    """Carries out sessions of one device, one after another.

    What happens at the same time is begun in its order, each request sent before the first answer
    is read, and then ended part by part; no other thread is needed for that.
    """

    def __init__(self, device: Device, transport: Transport) -> None:
        self._device = device
        self._transport = transport
        self.recorder = Recorder(device.population, device.history, device.name, device.now)

    def run(self, session: Steps[T]) -> T:
        """Carry out a session, or a part of one.

        :raises StatusError: if the part does not catch the error of a step.
        """
        return self._continue(session, next, ())

    def _continue(self, part: Steps[T], resume: Callable[..., SessionStep], given: Any) -> T:
        """Resume a part and carry out its steps up to its end."""
        try:
            step = resume(part, *given)
            while True:
                try:
                    answer = self._perform(step)
                except StatusError as error:
                    step = part.throw(error)
                else:
                    step = part.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _perform(self, step: SessionStep | Sent) -> Any:
        if isinstance(step, Request):
            return self._transport.send(step)
        if isinstance(step, Sent):
            return self._transport.finish(step)
        if isinstance(step, Sleep):
            return self._transport.interruption.wait(step.seconds)
        if isinstance(step, Concurrently):
            return self._perform_all(step.parts)
        if isinstance(step, Compute):
            return self._compute(step)
        if isinstance(step, Evaluate):
            return self._evaluate(step)
        history = self._device.history
        if isinstance(step, Remember):
            return None if history is None else self._remember(step, history)
        if step.note is not None and history is not None:
            history.withdraw(step.note)
        return None

    def _perform_all(self, parts: Sequence[Steps[Any]]) -> list[Any]:
        begun = [self._begin(part) for part in parts]
        for one in begun:
            if one.step is None:
                continue
            try:
                one.result = self._continue(one.part, self._end_first, (one.step,))
            except StatusError as error:
                one.error = error
        for one in begun:
            if one.error is not None:
                raise one.error
        return [one.result for one in begun]

    def _begin(self, part: Steps[Any]) -> _Begun:
        """Start a part; if it begins with a request, send that."""
        try:
            step = next(part)
        except StopIteration as end:
            return _Begun(part, None, end.value)
        except StatusError as error:
            return _Begun(part, None, error=error)
        return _Begun(part, self._transport.begin(step) if isinstance(step, Request) else step)

    def _end_first(self, part: Steps[Any], step: SessionStep | Sent) -> SessionStep:
        try:
            answer = self._perform(step)
        except StatusError as error:
            return part.throw(error)
        return part.send(answer)

    def _remember(self, step: Remember, history: History) -> int:
        device = self._device
        return history.add(
            device.population,
            step.task_name,
            device.now(),
            session=device.name,
            separation_index=step.separation_index,
            statement=step.statement,
        )

    def _evaluate(self, step: Evaluate) -> Eligibility:
        if step.plan is None:
            return self._decide(step, None)
        device = self._device
        with (
            self.recorder.run(ELIGIBILITY, step.plan[0], device.store) as store,
            self._limited("the eligibility plan") as interruption,
        ):
            plan = EligibilityPlan(
                *step.plan, device.executors, store, self._slices("", interruption), interruption
            )
            return self._decide(step, plan)

    def _decide(self, step: Evaluate, plan: EligibilityPlan | None) -> Eligibility:
        device = self._device
        if step.spec is None and plan is not None:
            return Eligibility(plan.weights(), multiple_tasks=(), may_start=True)
        decider = EligibilityDecider(
            device.population, device.store, device.history, device.now, plan
        )
        return decider.decide(step.spec)

    def _compute(self, step: Compute) -> Computed:
        started = time.perf_counter()
        try:
            results, separation_index = self._run_plan(step)
            seconds = time.perf_counter() - started
            statement = statement_of(step.plan).text
            return Computed(
                results, seconds, separation_index=separation_index, statement=statement
            )
        except StatusError as error:
            failure = error
        except UsageError as error:  # a package is missing, as TensorFlow may be
            failure = StatusError(Code.UNIMPLEMENTED, str(error))
            failure.__cause__ = error
        except plugin_errors() as error:
            # Stores and executors may be anybody's code; a fault in them must not take down the
            # device, and the server should hear of it.
            _LOG.exception("task %r failed unexpectedly", step.assignment.task_name)
            failure = StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        return Computed(seconds=time.perf_counter() - started, error=failure)

    def _run_plan(self, step: Compute) -> tuple[PlanResults, int | None]:
        try:
            plan = plan_pb2.ClientOnlyPlan.FromString(step.plan)
        except DecodeError as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"the plan is not a ClientOnlyPlan: {error}"
            ) from error
        separation_index = None
        if plan.client_persisted_data.HasField("min_sep_policy_index"):
            separation_index = plan.client_persisted_data.min_sep_policy_index
        template = step.assignment.federated_select_uri_info.uri_template
        with (
            self.recorder.run(step.assignment.task_name, step.plan, self._device.store) as store,
            self._limited("the plan") as interruption,
        ):
            admission = self._admit(step)
            if admission is not None:
                check_plan(plan, admission)
                store = GuardedStore(store, admission)
            slices = self._slices(template, interruption)
            found = run_plan(
                self._device.executors,
                PlanRun(plan, step.checkpoint, store, slices, interruption),
            )
            results = PlanResults(found) if isinstance(found, bytes) else found
            if admission is not None:
                results = admission.results(results)
        return results, separation_index

    def _admit(self, step: Compute) -> Admission | None:
        """Ask the owner's policy, if there is one.

        :raises RefusedError: if the task may not run.
        """
        device = self._device
        if device.privacy is None:
            return None
        statement = statement_of(step.plan)
        return device.privacy.admit(step.assignment, statement, device.history, device.now())

    def _limited(self, what: str) -> AbstractContextManager[Interruption]:
        return self._transport.interruption.limited(self._device.plan_seconds, what)

    def _slices(self, template: str, interruption: Interruption) -> SliceSource:
        def download(uris: Sequence[str]) -> list[bytes]:
            return self._transport.download_all(uris, interruption.check)

        return SliceSource(download, template)
