"""Populations: the tasks of each, its device sessions, and the devices that wait for a task."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fcp_core.plugins.settings import PopulationSettings
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assigner import Assigner, Outcome
from fcp_core.rounds.events import Event, Rejected
from fcp_core.rounds.experience import Experiences, Lately
from fcp_core.rounds.pacing import Pace
from fcp_core.rounds.policies import Candidate, EligibilityPolicy, OfferedTask, RetryWindow
from fcp_core.rounds.session import DeviceSession, Sessions, SessionState
from fcp_core.rounds.tasks import AssignmentMode, TaskState
from fcp_core.rounds.text import clean
from fcp_core.rounds.tokens import RETENTION, label
from fcp_core.server.services.held_check_ins import HeldCheckIns
from fcp_core.server.services.policy_states import PolicyStates
from fcp_core.server.services.task_runner import TaskRunner
from fcp_core.server.services.ticker import Ticker

logger = logging.getLogger("fcp.services")

#: From so many waiting devices on, the policies are not asked at each arrival any more...
_MANY = 100
#: ... but as many times this many seconds apart: they look at all who wait, which takes a while.
_LOOK = 20e-6

#: The published client waits no longer than this from one poll to the next, in seconds.
LONGEST_POLLING_INTERVAL = 60.0
#: How often all devices that wait ask together, in times a second, before each asks less often.
MOST_POLLS = 1000.0

#: Seconds after a decision in which what policies keep is written.
_SAVE = 1.0


class Population:
    """One population's open tasks, device sessions and waiting devices.

    :param notify: called with each event.
    :param states: keeps what selection policies keep.
    """

    def __init__(
        self,
        name: str,
        rng: random.Random,
        ticker: Ticker,
        *,
        settings: PopulationSettings,
        notify: Callable[[Event], None],
        states: PolicyStates | None = None,
    ) -> None:
        self.name = name
        self._notify, self._states = notify, states
        self._saving = self._stopping = False
        #: The earliest window in which policies want those back whom they rejected.
        self._away: tuple[float, float] | None = None
        self.settings = settings
        self._max_at_work, self.capped = settings.max_at_work, settings.max_at_work is not None
        self.pace, self.lately = Pace(), Lately()
        self._experiences = Experiences(settings.max_silent_per_sender)
        self.senders = self._experiences.senders
        self._assigner: Assigner[DeviceSession] = Assigner(rng)
        self._ticker = ticker
        self._tasks: dict[str, TaskRunner] = {}
        #: The eligibility policies of the tasks that have their own.
        self.own_eligibility: dict[str, Sequence[EligibilityPolicy]] = {}
        watch = partial(ticker.register, f"sessions:{name}")
        self.sessions = Sessions(settings.session_timeout, RETENTION, self._expire, watch)
        #: Check-ins that wait for room.
        self.held = HeldCheckIns(name, ticker, self._capacity)
        #: When policies were asked last, and when an arrival is a reason to ask them again.
        self._asked = self._ask_again = 0.0
        #: When the ticker asks them.
        self._tick: float | None = None

    def open(
        self,
        task: TaskRunner,
        group: str,
        policy_name: str,
        policy: Any,
        options: Any,
        eligibility: Sequence[EligibilityPolicy] | None = None,
    ) -> None:
        """Add a task; its selection policy is shared by the tasks of one *group*.

        :param eligibility: its own eligibility policies; None: it has those of the population.
        """
        self._tasks[task.task_id] = task
        task.machine.share(self._experiences)
        if eligibility is not None:
            self.own_eligibility[task.task_id] = eligibility
            # Those who wait and were asked nothing were not asked about this one either.
            self._assigner.restrict(self._unasked())
        state = None
        if self._states is not None and not self._assigner.knows(group):
            state = self._states.get(self.name, group)
        self._assigner.open(task.task_id, group, policy_name, policy, options, state)
        self._away = None

    def close(self, task: TaskRunner, now: float) -> None:
        """Remove a task; devices that waited only for it are rejected."""
        if self._tasks.pop(task.task_id, None) is not None:
            self.own_eligibility.pop(task.task_id, None)
            self._assigner.close(task.task_id)
            self.consider(now)

    def open_tasks(self, mode: AssignmentMode | None = None) -> list[TaskRunner]:
        """Return the tasks that take contributions, oldest first."""
        return [
            task
            for task in self._tasks.values()
            if task.machine.state is TaskState.OPEN
            and (mode is None or task.spec.assignment_mode is mode)
        ]

    def offered(self) -> list[tuple[OfferedTask, Sequence[EligibilityPolicy] | None]]:
        """Return the open tasks, oldest first, each as :meth:`offer_of` does."""
        return [self.offer_of(task) for task in self.open_tasks()]

    def offer_of(self, task: TaskRunner) -> tuple[OfferedTask, Sequence[EligibilityPolicy] | None]:
        """Return a task as eligibility policies see it, and its own; None: the population's."""
        spec = task.spec
        offered = OfferedTask(spec.name, spec.assignment_mode, spec.options)
        return offered, self.own_eligibility.get(task.task_id)

    def note(self, task_name: str, reason: str) -> None:
        """Count why a device does not get the open tasks of a name."""
        for task in self.open_tasks():
            if task.spec.name == task_name:
                task.machine.reasons.note(reason)

    def _unasked(self) -> Mapping[str, float] | None:
        """Return the weights of a device that was asked nothing; None: it may take any task."""
        if not any(self.own_eligibility.values()):
            return None
        asked, others = set[str](), set[str]()
        for task in self.open_tasks():
            own = self.own_eligibility.get(task.task_id)
            (asked if own else others).add(task.spec.name)
        return dict.fromkeys(others - asked, 1.0)

    @property
    def at_work(self) -> int:
        """How many assignments have not ended, but for those that are overdue."""
        return sum(task.machine.at_work for task in self._tasks.values())

    @property
    def waiting(self) -> int:
        """How many devices wait for a task."""
        return self._assigner.waiting

    @property
    def polling_interval(self) -> float:
        """The seconds until a waiting device asks again: the more wait, the longer."""
        longest = LONGEST_POLLING_INTERVAL
        return max(self.settings.polling_interval, min(self.waiting / MOST_POLLS, longest))

    def arrive(self, session: DeviceSession, candidate: Candidate, now: float) -> None:
        """Let a device wait for a SINGLE task; it may have one before this returns.

        Where many wait, the policies are asked a moment later, for several together.
        """
        if candidate.weights is None:
            candidate = replace(candidate, weights=self._unasked())
        distrusted = self.senders.silent and not self.senders.trusts(session.origin)
        if self._stopping or distrusted:
            self._reject(session, "stopping" if self._stopping else "silent", now)
            return
        self._assigner.arrive(candidate, session)
        if self._asked <= now < self._ask_again:
            self._set_tick(self._ask_again)
        else:
            self._decide(now)

    def cancel(self, session: DeviceSession, now: float) -> None:
        """Withdraw a device that cancelled its request."""
        self._assigner.withdraw(session.candidate)
        session.move(SessionState.CANCELLED)
        self._notify(Rejected(now, self.name, label(session.session_id), "cancelled"))

    def _expire(self, session: DeviceSession, now: float) -> None:
        """Reject a device that has waited until its session's end."""
        self._assigner.withdraw(session.candidate)
        self._reject(session, "expired", now)

    def turn_away(self, now: float) -> int:
        """Reject all who wait, and from now on whoever comes: the server stops.

        :returns: how many waited.
        """
        self._stopping = True
        devices = self._assigner.withdraw_all()
        for device in devices:
            self._reject(device, "stopping", now)
        self.held.release()
        return len(devices)

    def forget(self) -> None:
        """Let time pass without it; who waits in vain is not answered any more."""
        self._stopping = True
        self.held.release()
        self.sessions.close()
        for kind in ("sessions", "population", "states", "held"):
            self._ticker.at(f"{kind}:{self.name}", None, self._decide)

    def _reject(self, session: DeviceSession, reason: str, now: float) -> None:
        session.move(SessionState.REJECTED)
        if session.windows is not None:
            at, accepted, rejected = session.windows
            self.pace.instead(accepted, rejected, at, now)
        self._notify(Rejected(now, self.name, label(session.session_id), reason))

    def consider(self, now: float) -> None:
        """Have policies decide again, since there may be more room, and answer held check-ins."""
        self._decide(now)
        self.held.let_in(now)

    def left(self, task: TaskRunner, *, contributed: bool, now: float) -> None:
        """Give the place of a device that has left a task to another one.

        :param contributed: whether it did; if not, the task misses one more than it thought.
        """
        machine, room = task.machine, self.capped
        if contributed:
            # Without a cap a contribution takes its place with it, unless more must be together.
            room = room or machine.max_at_work is not None or machine.together > 1
            room = room and self._capacity() > 0
        else:
            room = room or machine.capacity > 0
        if room:
            self.consider(now)

    def has_room(self, task: TaskRunner) -> bool:
        """Whether a task may be given one more device."""
        return task.machine.capacity > 0 and self._places() != 0

    def has_room_for(self, names: Collection[str]) -> bool:
        """Whether a task of one of these names may be given one more device."""
        return self._places() != 0 and any(
            task.spec.name in names and task.machine.capacity > 0 for task in self.open_tasks()
        )

    def _places(self) -> int | None:
        """Return how many more devices may have an assignment; None: any number."""
        if self._stopping:
            return 0
        if self._max_at_work is None:
            return None
        return max(0, self._max_at_work - self.at_work)

    def _decide(self, now: float) -> None:
        if self.senders.silent:
            for session in self._assigner.withdraw_if(lambda s: not self.senders.trusts(s.origin)):
                self._reject(session, "silent", now)
        if self._assigner.waiting:
            tasks = {task.task_id: task for task in self.open_tasks(AssignmentMode.SINGLE)}
            outcome = self._assigner.decide(
                [task.machine.view() for task in tasks.values()], now, self._places()
            )
            for problem in outcome.problems:
                logger.error("population %s: %s", self.name, clean(problem))
            for (task_id, reason), count in outcome.why.items():
                tasks[task_id].machine.reasons.note(reason, count)
            for assigned in outcome.assigned:
                tasks[assigned.task_id].assign(assigned.device, now)
                assigned.device.assign(tasks[assigned.task_id].aggregation_id)
            for rejection in outcome.rejected:
                self._reject(rejection.device, rejection.reason, now)
            self._learn(outcome, now)
            if self._assigner.changed and not self._saving:
                self._saving = True
                self._ticker.at(f"states:{self.name}", now + _SAVE, lambda now: self.save())
        waiting = self._assigner.waiting
        self._asked, self._ask_again = now, now + (waiting * _LOOK if waiting >= _MANY else 0.0)
        self._set_tick(None)

    def _learn(self, outcome: Outcome[DeviceSession], now: float) -> None:
        """Remember the earliest retry time that policies gave in a rejection."""
        if outcome.assigned:
            self._away = None
        for rejection in outcome.rejected:
            if rejection.retry is not None:
                away = (now + rejection.retry.delay_min, now + rejection.retry.delay_max)
                if self._away is None or self._away[0] <= now or away < self._away:
                    self._away = away

    def not_before(self, now: float) -> float:
        """Return the seconds until the earliest retry time that policies asked for."""
        return 0.0 if self._away is None else max(0.0, self._away[0] - now)

    def rejection_window(self, window: RetryWindow, now: float) -> RetryWindow:
        """Return when a device that checks in now is to come back if it gets no task.

        A rejection itself carries no window: what a policy said of those before it is for this one.

        :param window: what the pace says; it is put off, and not made shorter.
        """
        if self._away is None or self.not_before(now) <= window.delay_min:
            return window
        start, end = self._away[0] - now, self._away[1] - now
        return RetryWindow(start, max(end, start + window.delay_max - window.delay_min))

    def save(self) -> None:
        """Write what the selection policies keep."""
        self._saving = False
        for group, policy, state in self._assigner.take_changed():
            if self._states is not None:
                self._states.put(self.name, group, policy, state)

    def _set_tick(self, when: float | None) -> None:
        """Ask the policies again when one of them wants to be, or earlier if *when* is."""
        tick = self._assigner.next_tick()
        if tick is not None and (when is None or tick < when):
            when = tick
        if when is not None or self._tick is not None:
            self._tick = when
            self._ticker.at(f"population:{self.name}", when, self._decide)

    def _capacity(self) -> int:
        capacity, places = sum(t.machine.capacity for t in self.open_tasks()), self._places()
        return capacity if places is None else min(capacity, places)


class Populations:
    """All populations.

    :param names: those that devices may check in to from the beginning; None: there are none yet,
        and each task brings its own.
    :param claim: takes a population for this server, which has none before; None: all are its own.
    """

    def __init__(
        self,
        names: Iterable[str] | None,
        make: Callable[[str], Population],
        claim: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._make, self._claim = make, claim
        #: Whether a task may bring a population of its own.
        self.open_ended = names is None
        self._populations = {name: make(name) for name in names or () if claim is None}
        self._elsewhere = set() if claim is None else set(names or ())

    async def expect(self, name: str) -> None:
        """Check that a task may be for a population, and have it be this server's.

        :raises StatusError: NOT_FOUND if it must exist already; what ``Members.claim`` raises.
        """
        if self._claim is not None:
            await self._claim(name)
        elif not self.open_ended:
            self.get(name)

    def add(self, name: str) -> Population:
        """Return the population of that name, which exists from now on."""
        if name not in self._populations:
            self._populations[name] = self._make(name)
        return self._populations[name]

    def remove(self, name: str) -> None:
        """Forget a population, with its sessions: another member of the server owns it."""
        population = self._populations.pop(name, None)
        if population is not None:
            self._elsewhere.add(name)
            population.forget()

    def get(self, name: str) -> Population:
        """Return a population.

        :raises StatusError: NOT_FOUND if there is none of that name; UNAVAILABLE if it was this
            server's until the call was under way.
        """
        if name in self._populations:
            return self._populations[name]
        if name in self._elsewhere:
            raise StatusError(Code.UNAVAILABLE, f"another member owns the population {name!r} now")
        raise StatusError(Code.NOT_FOUND, f"there is no population {name!r} here")

    def for_task(self, name: str) -> Population:
        """Return the population that a task is for, once it is expected."""
        return self.add(name) if self.open_ended else self.get(name)

    @property
    def sessions(self) -> int:
        """How many device sessions are kept."""
        return sum(len(population.sessions) for population in self._populations.values())

    def __iter__(self) -> Iterator[Population]:
        """Iterate over the populations."""
        return iter(list(self._populations.values()))
