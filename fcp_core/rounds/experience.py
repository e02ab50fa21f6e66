"""What devices did lately: how long they take to show themselves, how many never do, and whose.

Tasks of one name in one population, such as the rounds of a program, share it. Nothing in it says
which device did what, and it may be lost: a server that begins again learns again.

Two questions are answered from it, by ``rounds.task``, which also notes in it how devices do:

* *How many devices for so many contributions?* The drop-outs of the last assignments give a share,
  which begins as one in ten and weighs no more than ten of them. Until m devices have brought a
  contribution, a negative binomial number of devices is needed; its mean and one
  standard deviation are asked for at once, and at most twice m.
* *How long may a device be silent?* Of an assigned device the server sees nothing until it begins
  to upload: it fetches, computes, and may have gone away; and after that until it has uploaded. The
  times of others for each of these two steps have a mean and a mean deviation, and one that takes
  longer than the mean and four deviations (TCP's retransmission timer, RFC 6298) is *overdue*: its
  place is given to another device as well. It is not sent away: if it comes after all, it
  contributes like any other.

Who takes places and does nothing with them is known by the address and the key that it checked in
with, and many may share those: a fleet behind one router, tests on one host. So nobody is limited
in how many places it takes, but in how many of them may be overdue. Whoever contributes is trusted
with as many of those as it has brought contributions. If others want the places that one holds in
silence, they are overdue at once (``rounds.sharing``).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.policies import RetryWindow
from fcp_core.rounds.reasons import Reasons

#: A device is not overdue before this, in seconds, however fast the others are.
SHORTEST = 1.0

#: While nothing is known, silence of so many seconds is too long where it is usual.
WORDLESS = 30.0

#: How many assignments the share of drop-outs, and how many the times, are taken from, about.
SHARE_OF, TIMES_OF = 200.0, 64
#: The share before anything was seen, and how many assignments it weighs as much as.
PRIOR, WEIGHT = 0.1, 10.0


#: Of so many task names it is remembered how their devices did.
_NAMES = 1_000
#: Of so many different offers it is remembered when they were made last.
OFFERS = 100
#: How many senders are remembered; of those without a silent place, the longest unseen goes first.
_REMEMBERED = 10_000
#: The most contributions that are held to a sender's credit.
_CREDIT = 1_000
#: So many contributions may wait to be credited.
LATER = 4_096


@dataclass
class Experience:
    """What was seen of the devices of one task name.

    There are two steps: 0: to a device's first sign of life, 1: from there to its contribution.

    :param first: how many seconds a device may be silent while nothing is known of the others.
    :ivar wordless: whether the devices may drop a result without a word, so that silence is usual.
    :ivar ended: how many assignments ended, or were overdue; what is long ago counts less.
    :ivar lost: how many of those came to nothing.
    :ivar times: of each step, how many times were seen.
    :ivar means: of each step, the mean of the times and their mean deviation, in seconds.
    :ivar learned: of each step, how long a device may take by these, in seconds.
    """

    first: float = 120.0
    wordless: bool = False
    ended: float = 0.0
    lost: float = 0.0
    times: list[int] = field(default_factory=lambda: [0, 0])
    means: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)] * 2)
    learned: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def lose(self) -> None:
        """Take that an assignment came to nothing."""
        if self.ended >= SHARE_OF:
            self.fade()
        self.ended += 1
        self.lost += 1

    def find(self) -> None:
        """Take back that an assignment was lost: the device came after all."""
        self.ended, self.lost = max(0.0, self.ended - 1), max(0.0, self.lost - 1)

    def fade(self) -> None:
        """Let what was seen so far count half."""
        self.ended, self.lost = self.ended / 2, self.lost / 2


class Experiences:
    """What is known of the devices of one population, by task name, and of their senders.

    :param max_silent_per_sender: how many places of one may be silent in any case; 0: any number.
    """

    def __init__(self, max_silent_per_sender: int = 0) -> None:
        self.senders = Senders(max_silent_per_sender)
        self._of: OrderedDict[str, Experience] = OrderedDict()

    def of(self, task_name: str, first: float, wordless: bool) -> Experience:
        """Return what is known of the devices of a task name; the longest unasked is forgotten.

        :param first: how many seconds a device may be silent while nothing is known of the others.
        :param wordless: whether devices may drop a result without a word.
        """
        found = self._of.pop(task_name, None) or Experience()
        found.first = min(first, WORDLESS) if wordless else first
        found.wordless = wordless
        self._of[task_name] = found
        if len(self._of) > _NAMES:
            self._of.popitem(last=False)
        return found


class Lately:
    """When devices of one population checked in last, and what they were told.

    :ivar came: when one did; None: never since the server began.
    :ivar windows: when the last one is to come back: with a task, and without.
    :ivar offers: when a device was offered the tasks of some names last, of :data:`OFFERS` at most.
    """

    __slots__ = ("came", "offers", "windows")

    def __init__(self) -> None:
        self.came: float | None = None
        self.windows: tuple[RetryWindow, RetryWindow] | None = None
        self.offers: dict[Collection[str], float] = {}

    def last_offer(self, name: str) -> float | None:
        """Return when a device was offered the tasks of a name last, if one was."""
        return max((at for names, at in self.offers.items() if name in names), default=None)


class Senders:
    """Counts the overdue places and the contributions of each sender, of one population.

    :param limit: how many places of one sender may be silent in any case; 0: any number.
    :ivar later: whose contributions are not credited yet: nobody asks while no place is silent.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self.later: list[Sequence[str]] = []
        #: Who has overdue places, and how many.
        self.silent: dict[str, int] = {}
        self._credit: OrderedDict[str, int] = OrderedDict()

    def trusts(self, origin: Sequence[str]) -> bool:
        """Whether a device may be given a place, by all that it is known by."""
        if not self._limit or not self.silent:
            return True
        self.settle()
        return all(
            self.silent.get(name, 0) < max(self._limit, self._credit.get(name, 0))
            for name in origin
        )

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit > 0

    def credit(self, name: str) -> int:
        """Return how many contributions a sender has brought that no silent place has cost."""
        self.settle()
        return self._credit.get(name, 0)

    def settle(self) -> None:
        """Credit the contributions that wait for it."""
        later, self.later = self.later, []
        for name in itertools.chain.from_iterable(later if self._limit else ()):
            self._credit[name] = min(self._credit.pop(name, 0) + 1, _CREDIT)
            if len(self._credit) > _REMEMBERED:
                self._credit.popitem(last=False)

    def fell_silent(self, origin: Sequence[str]) -> None:
        """Take that a place is overdue."""
        for name in origin:
            self.silent[name] = self.silent.get(name, 0) + 1

    def spoke(self, origin: Sequence[str]) -> None:
        """Take that the device of an overdue place came after all."""
        self._release(origin)

    def left(self, origin: Sequence[str]) -> None:
        """Take that an overdue place was given up: each costs what a contribution brought."""
        self.settle()
        for name in origin:
            if self._credit.get(name, 0) > 0:
                self._credit[name] -= 1
        self._release(origin)

    def _release(self, origin: Sequence[str]) -> None:
        for name in origin:
            self.silent[name] -= 1
            if not self.silent[name]:
                del self.silent[name]


class Awaited:
    """Of which of a task's devices something is awaited, since when, and who is overdue.

    :ivar steps: for each step, those that are not overdue, by id, in the order of since when.
    :ivar due: when somebody may be overdue; it is never later.
    :ivar overdue: how many are.
    :ivar ever_overdue: how many ever were.
    :ivar ever_came_back: how many of those came after all.
    :ivar look_again: when who holds most of the places is looked for again.
    :ivar silences: of how many devices of each client version there is no sign.
    """

    def __init__(
        self, experiences: Experiences, task_name: str, first: float, wordless: bool
    ) -> None:
        self.experience = experiences.of(task_name, first, wordless)
        self.senders = experiences.senders
        self.steps: tuple[dict[str, Assignment], dict[str, Assignment]] = ({}, {})
        self.due, self.look_again = math.inf, -math.inf
        self.overdue = self.ever_overdue = self.ever_came_back = 0
        self.silences = Reasons()

    @property
    def begun(self) -> int:
        """How many devices have shown themselves, have not contributed and are not overdue."""
        return len(self.steps[1])

    def came_back(self, record: Assignment, step: int) -> None:
        """Take that a device came that was overdue."""
        record.overdue = False
        self.overdue -= 1
        self.ever_came_back += 1
        if step == 0:
            self.silences.note(record.version or "unknown", -1)
        self.experience.find()
        self.senders.spoke(record.origin)

    def drop(self, record: Assignment, *, silent: bool) -> bool:
        """Stop awaiting a device; return whether it was overdue.

        :param silent: whether it is now, at the latest.
        """
        if silent and not record.overdue:
            self.lose(record, 0)
        for those in self.steps:
            those.pop(record.id, None)
        if record.overdue:
            self.overdue -= 1
            self.senders.left(record.origin)
        return record.overdue

    def validate(self, unready: Collection[Assignment]) -> None:
        """Check what always holds.

        :param unready: the assignments of which something is awaited.
        :raises AssertionError: naming what does not hold.
        """
        assert self.overdue == sum(a.overdue for a in unready), "who is overdue is counted"
        for step, those in enumerate(self.steps):
            assert {*those.values()} == {
                a for a in unready if not a.overdue and (a.state is not Stage.ASSIGNED) == step
            }, "who is awaited is known"

    def lose(self, record: Assignment, step: int) -> None:
        """Give a device's place to another one, too."""
        self.steps[step].pop(record.id, None)
        record.overdue = True
        self.overdue += 1
        self.ever_overdue += 1
        if step == 0:
            self.silences.note(record.version or "unknown")
        self.experience.lose()
        self.senders.fell_silent(record.origin)
