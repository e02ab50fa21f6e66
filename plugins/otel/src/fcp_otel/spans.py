"""Makes spans of events: a trace for each device session, and one for each task."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, Status, StatusCode, set_span_in_context

from fcp_core.rounds.events import (
    Assigned,
    CheckedIn,
    Committed,
    Contributed,
    Dropped,
    Event,
    Rejected,
    Surplus,
    TaskClosed,
    TaskOpened,
)


@dataclass
class _Session:
    """A session that is followed: its span, and those of its assignments by task."""

    span: Span
    assignments: dict[str, Span] = field(default_factory=dict)


class Spans:
    """Follows sessions and tasks by their events.

    :param sessions: makes the spans of sessions, and samples them.
    :param tasks: makes those of tasks.
    :param bound: how many sessions, and how many tasks, are followed; beyond, the oldest ends.
    """

    def __init__(self, sessions: TracerProvider, tasks: TracerProvider, bound: int) -> None:
        self._sessions_tracer = sessions.get_tracer("fcp")
        self._tasks_tracer = tasks.get_tracer("fcp")
        self._bound = bound
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._tasks: OrderedDict[str, Span] = OrderedDict()
        #: The last commit of each task: the contributions that follow it are in it.
        self._commits: OrderedDict[str, Committed] = OrderedDict()

    def take(self, event: Event) -> None:
        """Begin, add to or end the spans that an event is about."""
        if isinstance(event, CheckedIn):
            self._begin(event.session_id, event.population, event.at)
        elif isinstance(event, Rejected):
            self._end(event.session_id, event.at, "rejected", {"fcp.reason": event.reason})
        elif isinstance(event, Assigned):
            self._assign(event)
        elif isinstance(event, Contributed):
            self._contributed(event)
        elif isinstance(event, Committed):
            self._commits[event.task_id] = event
            if len(self._commits) > self._bound:
                self._commits.popitem(last=False)
        elif isinstance(event, Dropped):
            name = event.code.name
            more = {"fcp.phase": event.phase, "fcp.code": name}
            self._finish(event, "dropped", more, Status(StatusCode.ERROR, f"{event.phase}: {name}"))
        elif isinstance(event, Surplus):
            self._finish(event, "surplus", {}, Status(StatusCode.UNSET))
        elif isinstance(event, TaskOpened):
            self._open(event)
        elif isinstance(event, TaskClosed):
            self._close(event)

    def stop(self, at: float) -> None:
        """End what is still open."""
        for session_id in list(self._sessions):
            self._end(session_id, at, "unknown", {})
        while self._tasks:
            self._tasks.popitem()[1].end(_nanoseconds(at))

    def _begin(self, session_id: str, population: str, at: float) -> _Session:
        span = self._sessions_tracer.start_span(
            "session",
            Context(),
            attributes={"fcp.population": population, "fcp.session": _hashed(session_id)},
            start_time=_nanoseconds(at),
        )
        session = self._sessions[session_id] = _Session(span)
        if len(self._sessions) > self._bound:
            self._end(next(iter(self._sessions)), at, "unknown", {})
        return session

    def _end(self, session_id: str, at: float, outcome: str, more: dict[str, Any]) -> None:
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        for span in session.assignments.values():
            span.end(_nanoseconds(at))
        session.span.set_attributes({"fcp.outcome": outcome, **more})
        session.span.end(_nanoseconds(at))

    def _assign(self, event: Assigned) -> None:
        # It is not known if its check-in was at another member, or before a restart.
        session = self._sessions.get(event.session_id) or self._begin(
            event.session_id, event.population, event.at
        )
        task = self._tasks.get(event.task_id)
        session.assignments[event.task_id] = self._sessions_tracer.start_span(
            "assignment",
            set_span_in_context(session.span, Context()),
            attributes=_attributes(event),
            links=() if task is None else (Link(task.get_span_context()),),
            start_time=_nanoseconds(event.at),
        )

    def _contributed(self, event: Contributed) -> None:
        session = self._sessions.get(event.session_id)
        span = None if session is None else session.assignments.get(event.task_id)
        if span is not None:
            submitted = event.at - event.fold_seconds
            self._part(span, "upload", submitted - event.upload_seconds, submitted)
            fold = self._part(span, "fold", submitted, event.at)
            commit = self._commits.get(event.task_id)
            if commit is not None and commit.at >= submitted:
                began = max(submitted, commit.at - commit.seconds)
                shared = {"fcp.contributions": commit.contributions, "fcp.size": commit.size}
                self._part(fold, "commit", began, commit.at, shared)
        self._finish(event, "contributed", {"fcp.size": event.size}, Status(StatusCode.OK))

    def _part(
        self, outer: Span, name: str, begin: float, end: float, more: dict[str, Any] | None = None
    ) -> Span:
        """Make a span inside another one that is over already."""
        inside = set_span_in_context(outer, Context())
        part = self._sessions_tracer.start_span(
            name, inside, attributes=more, start_time=_nanoseconds(begin)
        )
        part.end(_nanoseconds(end))
        return part

    def _finish(
        self,
        event: Contributed | Dropped | Surplus,
        outcome: str,
        more: dict[str, Any],
        status: Status,
    ) -> None:
        session = self._sessions.get(event.session_id)
        span = None if session is None else session.assignments.pop(event.task_id, None)
        if session is None or span is None:
            return
        span.set_attributes({"fcp.outcome": outcome, **more})
        span.set_status(status)
        span.end(_nanoseconds(event.at))
        if not session.assignments:
            session.span.set_status(status)
            self._end(event.session_id, event.at, outcome, {})

    def _open(self, event: TaskOpened) -> None:
        self._tasks[event.task_id] = self._tasks_tracer.start_span(
            "task",
            Context(),
            attributes={**_attributes(event), "fcp.goal_count": event.goal_count},
            start_time=_nanoseconds(event.at),
        )
        if len(self._tasks) > self._bound:
            self._tasks.popitem(last=False)[1].end(_nanoseconds(event.at))

    def _close(self, event: TaskClosed) -> None:
        self._commits.pop(event.task_id, None)
        span = self._tasks.pop(event.task_id, None)
        if span is None:
            return
        name = event.code.name
        span.set_attributes({"fcp.contributed": event.contributed, "fcp.code": name})
        ended = StatusCode.OK if name == "OK" else StatusCode.ERROR
        span.set_status(Status(ended, None if name == "OK" else f"{name}: {event.message}"))
        span.end(_nanoseconds(event.at))


def sampler(ratio: float) -> ParentBased:
    """Return what samples such a share of sessions, whole."""
    return ParentBased(ALWAYS_ON if ratio >= 1 else TraceIdRatioBased(ratio))


def _attributes(event: Assigned | TaskOpened) -> dict[str, Any]:
    return {
        "fcp.population": event.population,
        "fcp.task": event.task_name,
        "fcp.task_id": event.task_id,
    }


def _hashed(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()[:16]


def _nanoseconds(at: float) -> int:
    return round(at * 1e9)
