"""The machine of one device session, from check-in to its end; also the record of a waiting device.

A device may report its eligibility at any time before it waits; a failed evaluation ends the
session. It asks for MULTIPLE tasks, for one SINGLE task, or first for the former and then for the
latter; asking for a SINGLE task twice gives the first answer again, since it can only mean that the
answer was lost. Which tasks it was given is not noted here: the id of an assignment follows from
the session and the task (:func:`assignment_id`), and the task has the record.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Machine
from fcp_core.rounds.policies import CheckIn, RetryWindow


class SessionState(Enum):
    """Where a device session stands. From WAITING on it has an operation, which says so."""

    CHECKED_IN = "checked_in"
    WAITING = "waiting"
    ASSIGNED = "assigned"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    ENDED = "ended"


MOVES: dict[SessionState, tuple[SessionState, ...]] = {
    SessionState.CHECKED_IN: (SessionState.WAITING, SessionState.ENDED),
    SessionState.WAITING: (SessionState.ASSIGNED, SessionState.REJECTED, SessionState.CANCELLED),
    SessionState.ASSIGNED: (),
    SessionState.REJECTED: (),
    SessionState.CANCELLED: (),
    SessionState.ENDED: (),
}

#: Of so many of the oldest sessions one is found that does not wait, if none has expired.
_LOOKED_AT = 100

_OVER = {
    SessionState.REJECTED: "it was rejected",
    SessionState.CANCELLED: "it was cancelled by the device",
}


def assignment_id(session_key: bytes, aggregation_id: str) -> str:
    """Return the id of the assignment of one task to one session: 32 hexadecimal digits.

    :param session_key: the random part of the session's id.
    """
    return hashlib.sha256(session_key + aggregation_id.encode()).hexdigest()[:32]


class DeviceSession(Machine[SessionState]):
    """One device session.

    :param session_id: its token.
    :param key: the random part of that, 16 bytes.
    :param check_in: what the device said of itself.
    :param expires: when it ends by itself, in seconds since the epoch.
    :param offered: the names of the tasks that it was offered.
    :param unconditional: the names of those it may be given although it has evaluated nothing;
        None: any task at all.
    :param plan_alone: whether it weighs what it was offered by a plan that does not know of the
        unconditional ones.
    :param token_key: the id of the key that signed its id.
    :param origin: the address and the key that it checked in with, as far as they count.
    :ivar windows: when it checked in, and when it is to come back: if it is given a task, and if
        not.
    :ivar candidate: the id by which selection policies know it while it waits.
    :ivar aggregation_id: the SINGLE task that it was given.
    :ivar asked: the MULTIPLE tasks that it asked for, by name, and their aggregation ids: empty for
        those that it was not given.
    :ivar assigned_any: whether it was given any task.
    """

    __slots__ = (
        "aggregation_id",
        "asked",
        "assigned_any",
        "candidate",
        "check_in",
        "eligibility",
        "ended",
        "expires",
        "key",
        "offered",
        "origin",
        "plan_alone",
        "sender",
        "session_id",
        "token_key",
        "unconditional",
        "windows",
    )

    MOVES = MOVES

    def __init__(
        self,
        session_id: str,
        key: bytes,
        check_in: CheckIn,
        *,
        expires: float,
        sender: str | None = None,
        offered: frozenset[str] = frozenset(),
        unconditional: frozenset[str] | None = None,
        plan_alone: bool = False,
        windows: tuple[float, RetryWindow, RetryWindow] | None = None,
        token_key: int | None = None,
        origin: Sequence[str] = (),
    ) -> None:
        super().__init__(SessionState.CHECKED_IN)
        self.session_id = session_id
        self.key = key
        self.check_in = check_in
        self.expires = expires
        self.sender = sender
        self.offered = offered
        self.unconditional = unconditional
        self.plan_alone = plan_alone
        self.windows = windows
        self.token_key = token_key
        self.origin = origin
        self.candidate = ""
        self.aggregation_id = ""
        self.asked: dict[str, str] = {}
        self.assigned_any = False
        self.ended = ""
        self.eligibility: Code | None = None

    def check(self) -> None:
        """Check that the session has not ended.

        :raises StatusError: ABORTED if it has ended.
        """
        why = self.ended or _OVER.get(self._state)
        if why:
            raise StatusError(Code.ABORTED, f"this session has ended ({why}); check in again")

    def report_eligibility(self, code: Code) -> None:
        """Take the outcome of the device's eligibility evaluation; the first one counts."""
        if self.eligibility is not None:
            return
        self.eligibility = code
        if code is not Code.OK and not self.assigned_any:
            self.end(f"its eligibility evaluation failed with {code.name}")

    def wait(self, candidate: str) -> None:
        """Begin to wait for a SINGLE task.

        :raises StatusError: ABORTED if the session has ended.
        """
        self.check()
        self.move(SessionState.WAITING)
        self.candidate = candidate

    def assign(self, aggregation_id: str) -> None:
        """Take the SINGLE task that it waited for."""
        self.move(SessionState.ASSIGNED)
        self.aggregation_id = aggregation_id

    def end(self, why: str) -> None:
        """Mark it ended, unless it waits or has ended; its tasks release the assignments."""
        if self._state is SessionState.CHECKED_IN:
            self.ended = why
            self.move(SessionState.ENDED)

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

    def __repr__(self) -> str:
        """Name its population and state, and not whose it is."""
        return f"<session of {self.check_in.population}, {self._state.value}>"


class Sessions:
    """The sessions of one population that are kept in memory.

    A session stays for *retention* seconds after it expired, so that a late poll finds the answer
    that it waited for.

    :param timeout: how long a session lives, in seconds.
    :param on_expire: called with each session that expires while it waits.
    :param watch: has :meth:`tick` called in time from now on; returns what is to be called when
        :meth:`next_tick` may have changed.
    """

    def __init__(
        self,
        timeout: float,
        retention: float,
        on_expire: Callable[[DeviceSession, float], None],
        watch: Callable[[Sessions], Callable[[], None]] = lambda sessions: lambda: None,
    ) -> None:
        self.timeout = timeout
        self._retention = retention
        self._on_expire = on_expire
        self._sessions: dict[str, DeviceSession] = {}
        #: The same in the order in which they came, which is that in which they expire: those that
        #: have not, and those that have, which stay a little longer.
        self._live: deque[DeviceSession] = deque()
        self._past: deque[DeviceSession] = deque()
        #: What :meth:`next_tick` said last.
        self._next = math.inf
        self._on_change = watch(self)

    def close(self) -> None:
        """Have nothing expire any more."""
        self._on_change = lambda: None

    def open(self, session: DeviceSession) -> None:
        """Add a session."""
        self._sessions[session.session_id] = session
        self._live.append(session)
        if session.expires < self._next:
            self._on_change()

    def get(self, session_id: str) -> DeviceSession | None:
        """Return the session of that id, or None."""
        return self._sessions.get(session_id)

    def forget_one(self) -> bool:
        """Forget the oldest one that does not wait, to have room; return whether there is one.

        Its device, if it asks once more, is answered as after a restart.
        """
        if self._past:
            found = self._past.popleft()
        else:
            oldest = islice(self._live, _LOOKED_AT)
            idle = next((s for s in oldest if s.state is not SessionState.WAITING), None)
            if idle is None:
                return False
            self._live.remove(found := idle)
        self._sessions.pop(found.session_id, None)
        return True

    def tick(self, now: float) -> None:
        """End sessions that expire, and forget those that expired long ago."""
        while self._live and self._live[0].expires <= now:
            session = self._live.popleft()
            self._past.append(session)
            if session.expires + self._retention <= now:
                continue  # nobody asks any more
            if session.state is SessionState.WAITING:
                self._on_expire(session, now)
            else:
                session.end("it expired")
        while self._past and self._past[0].expires + self._retention <= now:
            self._sessions.pop(self._past.popleft().session_id, None)

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        self._next = self._live[0].expires if self._live else math.inf
        if self._past:
            self._next = min(self._next, self._past[0].expires + self._retention)
        return None if self._next == math.inf else self._next

    def __len__(self) -> int:
        """Return how many are kept, those that have expired among them."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[DeviceSession]:
        """Iterate over them."""
        return iter(list(self._sessions.values()))
