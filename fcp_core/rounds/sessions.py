"""The machine of one device session, from check-in to its last report.

    CHECKED_IN --wait--> WAITING --assign--> ASSIGNED --release (of the last)--> CHECKED_IN
         |                  |
         +------- end ------+--> ENDED

A device may report its eligibility at any time before it is assigned; a failed evaluation ends the
session. It asks for MULTIPLE tasks, for one SINGLE task, or first for the former and then for the
latter; asking for a SINGLE task twice gives the first answer again, since it can only mean that the
answer was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.policies import CheckIn, RetryWindow

#: Stands between the principal and the certificate of a sender.
_AND = "\x1f"


def sender_of(principal: str | None, certificate: bytes | None) -> str | None:
    """Return what a session is bound to: a principal, and the client certificate that was shown.

    :param principal: what the authentication hook returned.
    :param certificate: DER; None: there was none.
    """
    if certificate is None:
        return principal
    return f"{principal or ''}{_AND}{hashlib.sha256(certificate).hexdigest()}"


def principal_of(sender: str | None) -> str | None:
    """Return the principal of what :func:`sender_of` returned."""
    principal, found, _ = (sender or "").rpartition(_AND)
    return (principal or None) if found else sender


class SessionState(Enum):
    """Where a device session stands."""

    CHECKED_IN = "checked_in"
    WAITING = "waiting"
    ASSIGNED = "assigned"
    ENDED = "ended"


@dataclass
class DeviceSession:
    """One device session.

    :param check_in: what the device said of itself.
    :param sender: whose it is, if that is more than the principal; see :func:`sender_of`.
    :param offered: the names of the tasks it was told of.
    :param unconditional: the names of those it may be given although it has evaluated nothing;
        None: any task at all.
    :param plan_alone: whether it weighs what it was told of by a plan that does not know of the
        unconditional ones.
    """

    session_id: str
    check_in: CheckIn
    offered: frozenset[str] = frozenset()
    unconditional: frozenset[str] | None = None
    plan_alone: bool = False
    sender: str | None = None
    #: When it checked in, and when it is to come back: if it is given a task, and if not.
    windows: tuple[float, RetryWindow, RetryWindow] | None = None
    waiting: bool = False
    operation: str | None = None
    ended: str | None = None
    eligibility: Code | None = None
    #: Live assignments: aggregation id -> assignment.
    assignments: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> SessionState:
        """Where it stands."""
        if self.ended is not None:
            return SessionState.ENDED
        if self.waiting:
            return SessionState.WAITING
        return SessionState.ASSIGNED if self.assignments else SessionState.CHECKED_IN

    def check(self, sender: str | None) -> None:
        """Check that the session goes on and is the sender's.

        :raises StatusError: PERMISSION_DENIED if somebody else's, ABORTED if it has ended.
        """
        self.check_sender(sender)
        if self.ended is not None:
            raise StatusError(
                Code.ABORTED, f"this session has ended ({self.ended}); check in again"
            )

    def check_sender(self, sender: str | None) -> None:
        """Check that the session is the sender's.

        :raises StatusError: PERMISSION_DENIED if it is somebody else's.
        """
        owner = self.check_in.principal if self.sender is None else self.sender
        if sender != owner:
            raise StatusError(
                Code.PERMISSION_DENIED,
                "this session was opened by another principal, or with another certificate",
            )

    def report_eligibility(self, code: Code) -> None:
        """Take the outcome of the device's eligibility evaluation; the first one counts."""
        if self.eligibility is not None:
            return
        self.eligibility = code
        if code is not Code.OK and self.state is SessionState.CHECKED_IN:
            self.end(f"its eligibility evaluation failed with {code.name}")

    def wait(self, operation: str) -> None:
        """Begin to wait for a SINGLE task."""
        self.operation = operation
        self.waiting = True

    def assign(self, aggregation_id: str, assignment: str) -> None:
        """Take an assignment."""
        self.waiting = False
        self.assignments[aggregation_id] = assignment

    def release(self, aggregation_id: str) -> None:
        """Let go of an assignment that has ended."""
        self.assignments.pop(aggregation_id, None)

    def stop_waiting(self, why: str) -> None:
        """Give up waiting: rejected or cancelled. A session that has no assignment ends with it."""
        self.waiting = False
        if not self.assignments:
            self.end(why)

    def end(self, why: str) -> None:
        """End it; what it still holds is its tasks' to let go of."""
        self.waiting = False
        if self.ended is None:
            self.ended = why

    def weights(self, reported: Mapping[str, float] | None) -> Mapping[str, float] | None:
        """Return the weights that count, given what the device reported, if anything.

        Only those of tasks that it was offered do: it cannot have evaluated others.
        """
        if self.unconditional is None:
            return reported
        free = dict.fromkeys(self.unconditional, 1.0)
        if reported is None:
            return free
        offered = {name: weight for name, weight in reported.items() if name in self.offered}
        return {**offered, **free} if self.plan_alone else offered


class SessionBook:
    """The device sessions that a request may still name.

    A session stays for *retention* seconds after it expired, so that a late device is answered
    ABORTED, which brings it back soon, and not NOT_FOUND.

    :param timeout: how long a session lives, in seconds.
    :param max_sessions: how many are kept at a time; None: any number.
    :param timeouts: the same as *timeout* for the populations where it differs.
    """

    def __init__(
        self,
        timeout: float,
        retention: float,
        max_sessions: int | None = None,
        timeouts: Mapping[str, float] | None = None,
    ) -> None:
        self._timeout = timeout
        self._timeouts = dict(timeouts or {})
        self._max_sessions = max_sessions
        self._retention = retention
        self._sessions: Expiring[DeviceSession] = Expiring()
        self._live: Expiring[DeviceSession] = Expiring()
        self._lost: Expiring[str] = Expiring()

    def open(self, session: DeviceSession, now: float) -> float:
        """Add a session; return when it is forgotten.

        :raises StatusError: UNAVAILABLE if there are too many.
        """
        if self._max_sessions is not None and len(self._sessions) >= self._max_sessions:
            raise StatusError(
                Code.UNAVAILABLE,
                f"there are {self._max_sessions} sessions already, the most that this server "
                "keeps; check in again later",
            )
        timeout = self.timeout_of(session.check_in.population)
        forgotten = now + timeout + self._retention
        self._live.put(session.session_id, session, now + timeout)
        self._sessions.put(session.session_id, session, forgotten)
        return forgotten

    def timeout_of(self, population: str) -> float:
        """Return how long a session of a population lives, in seconds."""
        return self._timeouts.get(population, self._timeout)

    def restore(self, session_id: str, population: str, forgotten: float) -> None:
        """Remember a session from before a restart, which is answered ABORTED."""
        self._lost.put(session_id, population, forgotten)

    def find(self, population: str, session_id: str) -> DeviceSession:
        """Return the session of that id in that population.

        :raises StatusError: ABORTED if it was lost at a restart, NOT_FOUND if there was never one.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.check_in.population == population:
            return session
        if self._lost.get(session_id) == population:
            raise StatusError(
                Code.ABORTED, "the server was restarted and this session is lost; check in again"
            )
        raise StatusError(
            Code.NOT_FOUND, f"population {population!r} has no session {session_id!r}; check in"
        )

    def get(self, session_id: str) -> DeviceSession | None:
        """Return the session of that id, or None."""
        return self._sessions.get(session_id)

    def __len__(self) -> int:
        """Return how many sessions are kept, those that have ended or expired among them."""
        return len(self._sessions)

    def knows(self, session_id: str) -> bool:
        """Whether there is or was such a session, before a restart too."""
        return session_id in self._sessions or session_id in self._lost

    def tick(self, now: float) -> tuple[list[DeviceSession], list[str]]:
        """Let time pass.

        :returns: the sessions that expire now and still wait (the shell answers them), and the ids
            of those that are forgotten.
        """
        expired = []
        for _, session in self._live.pop_due(now):
            if session.waiting:
                expired.append(session)
            elif not session.assignments:
                session.end("it expired")
        forgotten = [key for key, _ in self._sessions.pop_due(now) + self._lost.pop_due(now)]
        return expired, forgotten

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next."""
        expiries = (book.next_expiry() for book in (self._live, self._sessions, self._lost))
        return min((expiry for expiry in expiries if expiry is not None), default=None)
