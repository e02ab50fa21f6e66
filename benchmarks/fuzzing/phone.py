"""A device that does all as it should, while others send what none would."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from benchmarks.fuzzing.inputs import KINDS, Known
from benchmarks.fuzzing.transport import Request
from fcp_core.client import steps
from fcp_core.client.asynchronous import drive
from fcp_core.client.eligibility import Eligibility
from fcp_core.client.protocols import PlanResults
from fcp_core.client.results import Outcome
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, device_session
from fcp_core.client.steps import Compute, Computed, Evaluate, Reply, SessionStep
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility_pb2
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as operations_pb2
from fcp_core.protocol.status import StatusError, code_from_http


class Phone:
    """A device that does all as it should, one step at a time.

    :param send: gives a request to the server.
    :param body: what it contributes.
    """

    def __init__(
        self,
        send: Callable[[Request], Any],
        population: str,
        body: bytes,
        known: Known | None = None,
    ) -> None:
        self._send = send
        self._settings = DeviceSettings("http://localhost:80", population, encode=None)
        self._body = body
        self._known = Known() if known is None else known
        self._left = 0

    async def session(self, calls: int = 5) -> bool:
        """Go through a session; return whether it contributed.

        :param calls: how far it goes: 1 checks in, 2 has a task, 3 may upload, 4 has uploaded, 5
            has submitted.
        """
        self._left = calls
        schedule = RetrySchedule(float, random.Random(0))
        try:
            end = await drive(device_session(self._settings, schedule), self._perform)
        except _EnoughError:
            return False
        return end.outcome is Outcome.CONTRIBUTED

    async def _perform(self, step: SessionStep) -> Any:
        if isinstance(step, steps.Request):
            return await self._request(step)
        if isinstance(step, Evaluate):
            # It takes what anybody may take, and asks for nothing by name.
            return Eligibility(None, multiple_tasks=(), may_start=True)
        if isinstance(step, Compute):
            return Computed(PlanResults(self._body))
        return None

    async def _request(self, step: steps.Request) -> Reply:
        self._note(step)
        if not self._left and step.name in _COUNTED:
            raise _EnoughError
        path = step.url.partition("://localhost")[2].partition("/")[2]
        headers = tuple(step.headers.items())
        answer = await self._send(Request(step.method, f"/{path}", step.body or b"", headers))
        if answer.status != 200:
            raise StatusError(code_from_http(answer.status), f"{step.name}: {answer.status}")
        if step.name in _COUNTED:
            self._left -= 1
        self._note_answer(step.name, answer.body)
        # What is downloaded stays as it came, but for what says which tasks there are.
        return Reply(answer.body)

    def _note(self, step: steps.Request) -> None:
        """Remember the names and tokens of a request."""
        if step.name == "download":
            self._known.add("files", step.url.partition("/data/")[2])
        for name, kind in KINDS.items():
            value = getattr(step.message, name, None)
            if isinstance(value, str) and kind != "populations":
                self._known.add(kind, value)

    def _note_answer(self, name: str, body: bytes) -> None:
        """Remember the names of sessions and operations."""
        if name == "EligibilityEvalTasks.RequestEligibilityEvalTask":
            answer = eligibility_pb2.EligibilityEvalTaskResponse.FromString(body)
            self._known.add("sessions", answer.session_id)
        elif name == "TaskAssignments.StartTaskAssignment":
            self._known.add("operations", operations_pb2.Operation.FromString(body).name)


class _EnoughError(Exception):
    """The device goes no further."""


#: What :meth:`Phone.session` counts.
_COUNTED = {
    "EligibilityEvalTasks.RequestEligibilityEvalTask",
    "TaskAssignments.StartTaskAssignment",
    "Aggregations.StartAggregationDataUpload",
    "upload",
    "Aggregations.SubmitAggregationResult",
}
