"""What holds one task's aggregation protocol to the laws of ``rounds.protocols``.

A plugin's fault never passes: it is logged with the protocol's name and costs, at most, the
assignments that it was about. What a protocol makes of the calls of devices, and what it wants, is
in ``services.protocol_calls``; here are its beginning and its end, who leaves, ticks and faults.
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from google.protobuf.message import Message

from fcp_core.errors import describe, plugin_errors
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import Assignment, CallState, ProtocolCall, Stage
from fcp_core.rounds.effects import DroppedEffect, Group, TaskEffect
from fcp_core.rounds.protocols import (
    AggregationProtocol,
    Drop,
    Effect,
    Pending,
    ProtocolTask,
    Tickets,
    Work,
)
from fcp_core.rounds.task import TaskMachine
from fcp_core.rounds.tasks import TaskState
from fcp_core.server.services.common import device_status

logger = logging.getLogger("fcp.services")

#: What the shell carries out: what the task's machine wants, and jobs for the engine.
ShellEffect: TypeAlias = TaskEffect | Work

#: Seconds between two ticks; and after one that failed, or that changed nothing.
_PAUSE, _LONG_PAUSE = 0.01, 1.0

_FAULT = "the server could not take the contribution; its log says why"


class ProtocolGuard(ABC):
    """One task's protocol machine, guarded; made as ``ProtocolHost``.

    :param name: the protocol's name, for the log.
    :param empty: the class of each method's response.
    """

    def __init__(
        self,
        name: str,
        protocol: AggregationProtocol,
        machine: TaskMachine,
        empty: Mapping[str, type[Any]],
    ) -> None:
        self._name = name
        self._protocol = protocol
        self._machine = machine
        self._empty = empty
        #: It gets no tick before: one that always says "now" would keep the server busy.
        self._quiet_until = 0.0
        #: Assignments whose calls the core answers itself once they are counted, since what the
        #: protocol said to them came too early.
        self._owed: set[str] = set()

        #: Whether it is given the bytes of uploads.
        self.reads = protocol.reads
        #: Whether it has a part of each assignment's message to fill in; if not, all are alike.
        self.describes = type(protocol).describe is not AggregationProtocol.describe
        #: Whether it ever has something to do at a time.
        self._ticks = type(protocol).next_tick is not AggregationProtocol.next_tick

    @property
    def resumable(self) -> bool:
        """Whether devices that called before a restart of the server can go on."""
        return self._protocol.resumable

    def concludes(self, method: str) -> bool:
        """Whether an OK to a method tells a device that it counts, if it is needed."""
        return method in self._protocol.concluding

    def describe(self, message: Any) -> None:
        """Have the protocol fill in its part of an assignment's message."""
        try:
            self._protocol.describe(message)
        except plugin_errors():
            self._log("describe")

    def start(self, task: ProtocolTask, now: float) -> list[ShellEffect]:
        """Begin.

        :raises StatusError: INVALID_ARGUMENT if the protocol cannot.
        """
        self._check_concluding()
        try:
            effects = self._protocol.start(task, now)
            self._machine.together = max(1, int(self._protocol.together))
        except plugin_errors() as error:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the aggregation protocol {self._name!r} cannot start the task: {describe(error)}",
            ) from error
        return self._carry_out(effects, now)

    def _check_concluding(self) -> None:
        """Check that a call tells devices that they count: the core watches over no other OK."""
        names, known = self._protocol.concluding, sorted(self._empty)
        usable = isinstance(names, Collection) and not isinstance(names, str) and len(names) > 0
        if not usable or any(name not in known for name in names):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the aggregation protocol {self._name!r} must name in concluding which of its "
                f"methods tell devices that they count ({', '.join(known)}), not {names!r}",
            )

    def notes(self) -> tuple[str, ...]:
        """Return what the protocol says to whoever watches the task."""
        try:
            return tuple(map(str, self._protocol.notes()))
        except plugin_errors():
            self._log("notes")
            return ()

    def gave_up(self, id_: str, phase: str, code: Code, why: str, now: float) -> list[ShellEffect]:
        """Drop a device that gave up; if its contribution is kept, only notify the protocol."""
        assignment = self._machine.get(id_)
        if assignment is None or assignment.state is not Stage.KEPT:
            return [*self._machine.drop(id_, phase, code, why, now)]
        return self._ask("left", partial(self._protocol.left, id_, code, now), now)

    def worked(self, key: str, result: bytes | StatusError, now: float) -> list[ShellEffect]:
        """Notify the protocol of the outcome of a job."""
        if self._machine.state is not TaskState.OPEN:
            return []
        return self._ask("worked", partial(self._protocol.worked, key, result, now), now)

    def left(self, effect: DroppedEffect, now: float, *, excused: bool) -> list[ShellEffect]:
        """Answer the calls of a device that was dropped, and notify the protocol.

        :param excused: whether it came too late and is answered OK all the same.
        """
        assignment = effect.assignment
        called = bool(assignment.calls)
        error = device_status(effect.code, effect.message)
        for method, call in assignment.calls.items():
            if call.state is CallState.PENDING:
                ok = excused and method in self._protocol.concluding
                call.finish(self._empty[method]() if ok else error)
        # At the task's end the whole protocol ends.
        if not called or self._machine.state is not TaskState.OPEN or effect.phase == "submit":
            return []
        return self._ask("left", partial(self._protocol.left, assignment.id, effect.code, now), now)

    def tick(self, now: float) -> list[ShellEffect]:
        """Give the protocol its tick, if it is due."""
        when = self.next_tick()
        if when is None or when > now:
            return []
        effects = self._ask("tick", partial(self._protocol.tick, now), now)
        self._quiet_until = 0.0
        when = self.next_tick()
        over = when is not None and when <= now
        self._quiet_until = now + (_LONG_PAUSE if over else _PAUSE)
        return effects

    def end(self) -> None:
        """Answer the calls that still wait, since the task has ended."""
        for assignment in self._machine.all():
            for method, call in assignment.calls.items():
                if call.state is not CallState.PENDING:
                    continue
                if assignment.state is Stage.CONTRIBUTED:
                    call.finish(self._empty[method]())
                else:
                    call.finish(StatusError(Code.ABORTED, "the task is over"))

    @abstractmethod
    def receive(
        self, assignment: Assignment, method: str, request: Any, tickets: Tickets, now: float
    ) -> tuple[ProtocolCall, list[ShellEffect]]:
        """Have the protocol take a call, unless it is one that was sent before."""

    @abstractmethod
    def uploaded(
        self, assignment: Assignment, slot: str, size: int, body: Any, now: float
    ) -> list[ShellEffect]:
        """Notify the protocol of an upload."""

    @abstractmethod
    def accumulated(self, group: Group, error: StatusError | None, now: float) -> list[ShellEffect]:
        """Notify the protocol of the outcome of an accumulation."""

    # Inside.

    @abstractmethod
    def _carry_out(
        self, effects: Sequence[Effect], now: float, about: Sequence[Assignment] = ()
    ) -> list[ShellEffect]:
        """Translate a protocol's effects, in order."""

    @abstractmethod
    def _ask(
        self,
        what: str,
        ask: Callable[[], Sequence[Effect]],
        now: float,
        about: Sequence[Assignment] = (),
    ) -> list[ShellEffect]:
        """Have the protocol say what it wants, and carry that out."""

    @abstractmethod
    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""

    def _drop(self, effect: Drop, now: float) -> list[ShellEffect]:
        if Code(effect.code) is Code.OK:
            raise ValueError("a device cannot be dropped with OK")
        why = (str(effect.phase), Code(effect.code), str(effect.message))
        return [*self._machine.drop(effect.assignment, *why, now, late=effect.late)]

    def _pending(self, call: ProtocolCall, effect: Pending, now: float) -> list[ShellEffect]:
        """Let a long-running call wait."""
        if isinstance(effect.metadata, Message):
            call.metadata = effect.metadata
            return []
        assignment = self._machine.assignments[effect.assignment]
        return self._refuse(assignment, f"says {effect.metadata!r} of an operation", now)

    def _conclude_owed(self, assignments: Sequence[Assignment]) -> None:
        """Answer those whose answers came too early."""
        for assignment in assignments:
            if assignment.id in self._owed:
                self._owed.discard(assignment.id)
                self._conclude(assignment)

    def _cannot(self, assignments: Sequence[Assignment], now: float) -> list[ShellEffect]:
        """Log what cannot be accumulated, and give up the devices that it is for."""
        logger.error(
            "the aggregation protocol %s of task %s wants to accumulate what it cannot: %s",
            self._name,
            self._machine.name,
            [str(record) for record in assignments],
        )
        return self._give_up(assignments, now)

    def _unasked(self, method: str) -> list[ShellEffect]:
        """Log an answer to a call that does not wait."""
        logger.error(
            "the aggregation protocol %s of task %s answers a %s that does not wait",
            self._name,
            self._machine.name,
            method,
        )
        return []

    def _refuse(self, assignment: Assignment, what: str, now: float) -> list[ShellEffect]:
        """Log an answer that cannot be given, and give up the device that it is for."""
        logger.error(
            "the aggregation protocol %s of task %s %s", self._name, self._machine.name, what
        )
        self._machine.reasons.note(f"aggregation protocol {self._name} {what}")
        return self._give_up([assignment], now)

    def _give_up(self, assignments: Sequence[Assignment], now: float) -> list[ShellEffect]:
        """Drop the assignments that a fault was about, or answer them if they are counted."""
        found: list[ShellEffect] = []
        for assignment in assignments:
            found += self._machine.drop(assignment.id, "protocol", Code.INTERNAL, _FAULT, now)
            if assignment.state is Stage.CONTRIBUTED:
                self._conclude(assignment)
            elif not assignment.ended:
                self._owed.add(assignment.id)
        return found

    def _conclude(self, assignment: Assignment) -> None:
        """Answer OK to a device that is counted, wherever it waits for that."""
        if assignment.state is Stage.CONTRIBUTED:
            for method in self._protocol.concluding:
                call = assignment.calls.get(method)
                if call is not None and call.state is CallState.PENDING:
                    call.finish(self._empty[method]())

    def _log(self, what: str) -> None:
        """Log the exception that is being handled, and tell who watches the task."""
        error = sys.exc_info()[1]
        self._machine.reasons.note(
            f"aggregation protocol {self._name} failed ({what}): {describe(error)}"
        )
        logger.exception(
            "the aggregation protocol %s of task %s failed (%s)",
            self._name,
            self._machine.name,
            what,
        )
