"""Populations: which tasks each has, which devices wait for one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assigner import Assigner, Outcome, Rejection
from fcp_core.rounds.pacing import Pace
from fcp_core.rounds.policies import Candidate, EligibilityPolicy, OfferedTask, RetryWindow
from fcp_core.rounds.tasks import AssignmentMode, TaskState
from fcp_core.server.services.policy_states import PolicyStates
from fcp_core.server.services.round import Round
from fcp_core.server.services.ticker import Ticker

logger = logging.getLogger("fcp.services")

#: Seconds after which further devices are let in, if there still is room.
_AGAIN = 0.2

#: From so many waiting devices on, the policies are not asked at each arrival any more...
_MANY = 100
#: ... but as many times this many seconds apart: they look at all who wait, which takes a while.
_LOOK = 20e-6

#: Seconds after a decision in which what policies keep is written.
_SAVE = 1.0


@dataclass(frozen=True)
class Waiter:
    """Whom to tell about a candidate."""

    assigned: Callable[[Round, float], None]
    rejected: Callable[[Rejection, float], None]


class Population:
    """One population's open tasks and waiting devices.

    :param max_at_work: how many devices may be at work on its tasks at a time; None: any number.
    :param states: keeps what selection policies keep.
    """

    def __init__(
        self,
        name: str,
        rng: random.Random,
        ticker: Ticker,
        max_at_work: int | None = None,
        states: PolicyStates | None = None,
    ) -> None:
        self.name = name
        self._states = states
        self._saving = False
        #: From when to when those are to come back whom policies sent away.
        self._away: tuple[float, float] | None = None
        self._max_at_work = max_at_work
        self.pace = Pace()
        self._assigner = Assigner(rng)
        self._ticker = ticker
        self._rounds: dict[str, Round] = {}
        #: The eligibility policies of the rounds that have their own.
        self._eligibility: dict[str, Sequence[EligibilityPolicy]] = {}
        self._waiters: dict[str, Waiter] = {}
        #: Devices that have checked in and are not answered yet, in order.
        self._held: dict[int, asyncio.Future[None]] = {}
        self._last_held = 0
        #: When policies were asked last, and when an arrival is a reason to ask them again.
        self._asked = self._ask_again = 0.0

    def open(
        self,
        round_: Round,
        group: str,
        policy_name: str,
        policy: Any,
        options: Any,
        eligibility: Sequence[EligibilityPolicy] | None = None,
    ) -> None:
        """Add a round; its selection policy is shared by the rounds of one *group*.

        :param eligibility: its own eligibility policies; None: it has those of the population.
        """
        self._rounds[round_.task_id] = round_
        if eligibility is not None:
            self._eligibility[round_.task_id] = eligibility
            # Those who wait and were asked nothing were not asked about this one either.
            self._assigner.restrict(self._unasked())
        state = None
        if self._states is not None and not self._assigner.knows(group):
            state = self._states.get(self.name, group)
        self._assigner.open(round_.task_id, group, policy_name, policy, options, state)
        self._away = None

    def close(self, round_: Round, now: float) -> None:
        """Take a round away; whoever waited only for it is sent away."""
        if self._rounds.pop(round_.task_id, None) is not None:
            self._eligibility.pop(round_.task_id, None)
            self._assigner.close(round_.task_id)
            self.consider(now)

    def open_rounds(self, mode: AssignmentMode | None = None) -> list[Round]:
        """Return the rounds that take contributions, oldest first."""
        return [
            round_
            for round_ in self._rounds.values()
            if round_.machine.state is TaskState.OPEN
            and (mode is None or round_.spec.assignment_mode is mode)
        ]

    def offered(self) -> list[tuple[OfferedTask, Sequence[EligibilityPolicy] | None]]:
        """Return the open tasks as eligibility policies see them, oldest first.

        Each comes with its own eligibility policies; None: it has those of the population.
        """
        return [self.offer_of(round_) for round_ in self.open_rounds()]

    def offer_of(self, round_: Round) -> tuple[OfferedTask, Sequence[EligibilityPolicy] | None]:
        """Return a round as :meth:`offered` does."""
        spec = round_.spec
        task = OfferedTask(spec.name, spec.assignment_mode, spec.options)
        return task, self._eligibility.get(round_.task_id)

    def _unasked(self) -> Mapping[str, float] | None:
        """Return the weights of a device that was asked nothing; None: it may take any task."""
        if not any(self._eligibility.values()):
            return None
        asked: set[str] = set()
        others: set[str] = set()
        for round_ in self.open_rounds():
            own = self._eligibility.get(round_.task_id)
            (asked if own else others).add(round_.spec.name)
        return dict.fromkeys(others - asked, 1.0)

    @property
    def at_work(self) -> int:
        """How many devices have a task and are not done with it."""
        return sum(round_.machine.pending for round_ in self._rounds.values())

    @property
    def waiting(self) -> int:
        """How many devices wait for a task."""
        return self._assigner.waiting

    def load(self, now: float) -> Mapping[str, Any]:
        """Return how busy it is, for pace steering."""
        rounds = self.open_rounds()
        missing = sum(round_.machine.missing for round_ in rounds)
        return {
            "open_tasks": len(rounds),
            "missing": missing,
            "needs": self.pace.needs(missing, now),
            "waiting": self._assigner.waiting,
            "check_in_rate": self.pace.rate(now),
            "population_size": self.pace.population_size(now),
            "pace": self.pace,
            "not_before": 0.0,
        }

    def arrive(self, candidate: Candidate, waiter: Waiter, now: float) -> None:
        """Let a device wait for a SINGLE task; *waiter* may be told before this returns.

        Where many wait, the policies hear of it a moment later, together with others.
        """
        self._waiters[candidate.id] = waiter
        if candidate.weights is None:
            candidate = replace(candidate, weights=self._unasked())
        self._assigner.arrive(candidate)
        if self._asked <= now < self._ask_again:
            self._set_tick(self._ask_again)
        else:
            self._decide(now)

    def withdraw(self, candidate: str) -> None:
        """Let a device wait no longer."""
        self._waiters.pop(candidate, None)
        self._assigner.withdraw(candidate)

    def consider(self, now: float) -> None:
        """Have the selection policies decide about those who wait, and let in who is held.

        To be called when there may be more room than before.
        """
        self._decide(now)
        self._let_in(self._capacity())
        # One that was let in may not come on.
        again = now + _AGAIN if self._held and self._capacity() else None
        self._ticker.at(f"held:{self.name}", again, self.consider)

    def left(self, round_: Round, *, contributed: bool, now: float) -> None:
        """Take note that a device has left a round: there may be room for another.

        :param contributed: whether it did; if not, the round misses one more than it thought.
        """
        capped = self._max_at_work is not None
        if contributed:
            # Without a cap a contribution takes its place with it.
            capped = capped or round_.machine.max_at_work is not None
            room = capped and self._capacity() > 0
        else:
            room = capped or round_.machine.capacity > 0
        if room:
            self.consider(now)

    def has_room(self, round_: Round) -> bool:
        """Whether a round may be given one more device."""
        return round_.machine.capacity > 0 and self._places() != 0

    def has_room_for(self, names: Collection[str]) -> bool:
        """Whether a task of one of these names may be given one more device."""
        if self._places() == 0:
            return False
        return any(
            round_.spec.name in names and round_.machine.capacity > 0
            for round_ in self.open_rounds()
        )

    def _places(self) -> int | None:
        """Return how many more devices may be at work; None: any number."""
        if self._max_at_work is None:
            return None
        return max(0, self._max_at_work - self.at_work)

    def _decide(self, now: float) -> None:
        if self._assigner.waiting:
            rounds = {r.task_id: r for r in self.open_rounds(AssignmentMode.SINGLE)}
            outcome = self._assigner.decide(
                [r.machine.view() for r in rounds.values()], now, self._places()
            )
            for problem in outcome.problems:
                logger.error("population %s: %s", self.name, problem)
            for assign in outcome.assigned:
                self._waiters.pop(assign.candidate).assigned(rounds[assign.task_id], now)
            for rejection in outcome.rejected:
                self._waiters.pop(rejection.candidate).rejected(rejection, now)
            self._learn(outcome, now)
            if self._assigner.changed and not self._saving:
                self._saving = True
                self._ticker.at(f"states:{self.name}", now + _SAVE, lambda now: self.save())
        waiting = self._assigner.waiting
        self._asked, self._ask_again = now, now + (waiting * _LOOK if waiting >= _MANY else 0.0)
        self._set_tick(None)

    def _learn(self, outcome: Outcome, now: float) -> None:
        """Take note of when policies want those back whom they send away: the earliest counts."""
        if outcome.assigned:
            self._away = None
        for rejection in outcome.rejected:
            if rejection.retry is not None:
                away = (now + rejection.retry.delay_min, now + rejection.retry.delay_max)
                if self._away is None or self._away[0] <= now or away < self._away:
                    self._away = away

    def not_before(self, now: float) -> float:
        """Return seconds before which policies want no device that they send away back."""
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
        for group, state in self._assigner.take_changed():
            if self._states is not None:
                self._states.put(self.name, group, state)

    def _set_tick(self, when: float | None) -> None:
        """Ask the policies again when one of them wants to be, or earlier if *when* is."""
        ticks = [tick for tick in (self._assigner.next_tick(), when) if tick is not None]
        self._ticker.at(f"population:{self.name}", min(ticks, default=None), self._decide)

    async def room(self, longest: float, now: float) -> None:
        """Wait until there is a task that has room for one more device.

        :param longest: seconds after which this returns in any case.
        """
        if self._capacity() > len(self._held):
            return
        self._last_held += 1
        number = self._last_held
        held = self._held[number] = asyncio.get_running_loop().create_future()
        key = f"held:{self.name}:{number}"
        self._ticker.at(key, now + longest, lambda now: _go_on(held))
        try:
            await held
        finally:
            self._held.pop(number, None)
            self._ticker.at(key, None, self._decide)

    def release(self) -> None:
        """Let everybody go on who waits for room."""
        self._let_in(len(self._held))

    def _capacity(self) -> int:
        capacity = sum(round_.machine.capacity for round_ in self.open_rounds())
        places = self._places()
        return capacity if places is None else min(capacity, places)

    def _let_in(self, number: int) -> None:
        """Let the first go on; more than there is room for would have come in vain."""
        for key in list(self._held)[:number]:
            _go_on(self._held.pop(key))


def _go_on(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)


class Populations:
    """All populations.

    :param names: those that devices may check in to from the beginning; None: there are none yet,
        and each task brings its own.
    """

    def __init__(self, names: Iterable[str] | None, make: Callable[[str], Population]) -> None:
        self._make = make
        #: Whether a task may bring a population of its own.
        self.open_ended = names is None
        self._populations = {name: make(name) for name in names or ()}

    def add(self, name: str) -> Population:
        """Return the population of that name, which exists from now on."""
        if name not in self._populations:
            self._populations[name] = self._make(name)
        return self._populations[name]

    def get(self, name: str) -> Population:
        """Return a population.

        :raises StatusError: NOT_FOUND if there is none of that name.
        """
        population = self._populations.get(name)
        if population is None:
            raise StatusError(Code.NOT_FOUND, f"there is no population {name!r} here")
        return population

    def for_task(self, name: str) -> Population:
        """Return the population that a task is for.

        :raises StatusError: NOT_FOUND if there is none and tasks do not bring their own.
        """
        return self.add(name) if self.open_ended else self.get(name)

    def __iter__(self) -> Iterator[Population]:
        """Iterate over the populations."""
        return iter(list(self._populations.values()))
