"""The built-in selection policies that choose among candidates, and their registration.

Those that limit another policy are in :mod:`fcp_plugins.selection_limits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcp_core.plugins.config import OptionRegistry
from fcp_core.rounds.policies import (
    Assign,
    Candidate,
    Decision,
    OpenTask,
    Reject,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
    SelectionView,
)
from fcp_plugins.selection_fair import FairSharePolicy, parse_shares
from fcp_plugins.selection_gathering import Gathering
from fcp_plugins.selection_limits import RateCappedPolicy, TimeWindowsPolicy, parse_windows

#: How many task names ``fifo`` knows the turns of.
_MAX_NAMES = 100


class FifoPolicy(SelectionPolicy):
    """Serves candidates in the order of arrival, with the tasks in turn; others wait.

    Tasks take turns by name, and the oldest of a name comes first, so that the rounds of one
    computation count together. The state holds the names in order of when they were last served,
    longest ago first.
    """

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        rooms: dict[str, list[OpenTask]] = {}
        for task in view.tasks:
            if task.capacity > 0:
                rooms.setdefault(task.name, []).append(task)
        if len(rooms) < 2:
            return Selection(_assign(view.candidates, view.tasks), view.state)
        known: list[str] = list(view.state or ())
        turns = [name for name in rooms if name not in known] + [n for n in known if n in rooms]
        left = {task.task_id: task.capacity for task in view.tasks}
        served: dict[str, None] = {}
        decisions = []
        for candidate in view.candidates:
            name = next((name for name in turns if candidate.eligible(name)), None)
            if name is None:
                continue
            tasks = rooms[name]
            task_id = tasks[0].task_id
            decisions.append(Assign(candidate.id, task_id))
            left[task_id] -= 1
            if not left[task_id]:
                del tasks[0]
            served.pop(name, None)
            served[name] = None
            turns.remove(name)
            if tasks:
                turns.append(name)
            elif not turns:
                break
        order = [name for name in known if name not in served] + list(served)
        return Selection(decisions, order[-_MAX_NAMES:] or None)


class UniformPolicy(SelectionPolicy):
    """Waits for candidates to gather, then samples uniformly among them without replacement.

    Whoever came first has no advantage within a window, which keeps fast devices from being
    over-represented. A window starts when there are both a candidate and a task for it.

    :param window: how long candidates gather, in seconds.
    :param min_candidates: how many are enough to sample before the window ends; None: never.
    """

    def __init__(self, window: float, min_candidates: int | None) -> None:
        self._gathering = Gathering(window, min_candidates)

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        possible, tick_in = self._gathering.look(view)
        if tick_in is not None or not possible:
            return Selection(tick_in=tick_in)
        return Selection(_assign(view.rng.sample(possible, len(possible)), view.tasks))


class CohortPolicy(SelectionPolicy):
    """Starts all devices of a round together, and leaves them alone until the round is over.

    How many devices a round starts with is the task's: its missing contributions times its
    over-selection. They are drawn uniformly once so many wait, or, with fewer, when the window is
    over. Devices that drop out are not replaced as long as those at work can fill the round; the
    task releases the rest once it has its goal.

    :param window: how long a cohort may take to gather, in seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        decisions: list[Decision] = []
        ticks: list[float] = []
        wanted: set[str] = set()
        left = {candidate.id: candidate for candidate in view.candidates}
        for task in view.tasks:
            if task.capacity < 1 or task.pending >= task.missing:
                continue
            wanted.add(task.name)
            able = [candidate for candidate in left.values() if candidate.eligible(task.name)]
            if not able:
                continue
            began = max(task.created, min(candidate.arrived for candidate in able))
            remaining = began + self._window - view.now
            if len(able) >= task.capacity or remaining <= 0:
                able = view.rng.sample(able, min(len(able), task.capacity))
                decisions += [Assign(candidate.id, task.task_id) for candidate in able]
            else:
                ticks.append(remaining)
            # Those who gather for one task are not taken by the next.
            for candidate in able:
                del left[candidate.id]
        decisions += [Reject(c.id) for c in left.values() if not c.eligible_for_any(wanted)]
        return Selection(decisions, tick_in=min(ticks, default=None))


class WeightedPolicy(SelectionPolicy):
    """Draws candidates without replacement, by the weights that they report for a task.

    Of two devices the one with twice the weight is twice as likely to be drawn next. A device that
    evaluated no eligibility counts with weight 1.

    :param max_weight: a larger weight counts as this, since a device may claim anything.
    """

    def __init__(self, window: float, min_candidates: int | None, max_weight: float) -> None:
        self._gathering = Gathering(window, min_candidates)
        self._max_weight = max_weight

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        possible, tick_in = self._gathering.look(view)
        if tick_in is not None or not possible:
            return Selection(tick_in=tick_in)
        decisions = []
        left = {candidate.id: candidate for candidate in possible}
        for task in view.tasks:
            keyed = []
            for candidate in left.values():
                if candidate.eligible(task.name):
                    # The first of k exponential clocks rings in proportion to its rate.
                    clock = view.rng.expovariate(1.0) / self._weight(candidate, task.name)
                    keyed.append((clock, candidate.id))
            for _, candidate_id in sorted(keyed)[: max(0, task.capacity)]:
                del left[candidate_id]
                decisions.append(Assign(candidate_id, task.task_id))
        return Selection(decisions)

    def _weight(self, candidate: Candidate, name: str) -> float:
        if candidate.weights is None:
            return 1.0
        # So small a weight has no chance anyway, and dividing by it could overflow.
        return max(min(candidate.weights[name], self._max_weight), 1e-100)


def add_options(options: OptionRegistry) -> None:
    """Declare the policies' options."""
    drawing = ("uniform", "fair_share", "weighted")
    text = "how long candidates gather before a draw"
    options.add("selection", "window", "duration", "5s", text, of=drawing)
    text = "draw as soon as so many candidates wait; not set: only when the window ends"
    options.add("selection", "min_candidates", "int", None, text, minimum=1, of=drawing)
    options.add(
        "selection.cohort",
        "window",
        "duration",
        "1m",
        "how long a round's devices may take to gather; it then starts with those there are",
    )
    options.add(
        "selection.fair_share",
        "shares",
        "list",
        (),
        "NAME=NUMBER, how many devices a task gets for one of a task with share 1; * is allowed",
    )
    options.add(
        "selection.weighted",
        "max_weight",
        "float",
        100.0,
        "a larger weight counts as this",
        minimum=1e-6,
    )
    for name in ("rate_capped", "time_windows"):
        text = "the policy that chooses, by name"
        options.add(f"selection.{name}", "inner", "str", "fifo", text)
    cap = "selection.rate_capped"
    options.add(
        cap, "period", "duration", "1h", "the period that the limits are for", minimum=0.001
    )
    options.add(cap, "limit", "int", None, "the most devices assigned in a period", minimum=1)
    options.add(
        cap, "task_limit", "int", None, "the same for the tasks of one name together", minimum=1
    )
    times = "selection.time_windows"
    options.add(
        times, "windows", "list", ("00:00-24:00",), "HH:MM-HH:MM, when devices are assigned"
    )
    options.add(times, "utc_offset", "str", "+00:00", "what the windows' clock is ahead of UTC")
    options.add(times, "days", "list", (), "mon, tue, ...: the days windows begin on; not set: all")


def factories() -> list[SelectionPolicyFactory]:
    """Return the factories that the plugin registers."""
    return [
        SelectionPolicyFactory(
            "fifo", "first come, first served, with the tasks in turn", lambda options: FifoPolicy()
        ),
        SelectionPolicyFactory(
            "uniform",
            "let candidates gather, then draw uniformly without replacement",
            lambda options: UniformPolicy(options["window"], options["min_candidates"]),
        ),
        SelectionPolicyFactory(
            "cohort",
            "start a round's devices together; over-select, and stop early at the goal",
            lambda options: CohortPolicy(options["window"]),
        ),
        SelectionPolicyFactory(
            "fair_share",
            "serve the least served task; to devices with few choices, then long waits, first",
            lambda options: FairSharePolicy(
                options["window"], options["min_candidates"], parse_shares(options["shares"])
            ),
        ),
        SelectionPolicyFactory(
            "weighted",
            "draw by the weights that devices report, without replacement",
            lambda options: WeightedPolicy(
                options["window"], options["min_candidates"], options["max_weight"]
            ),
        ),
        SelectionPolicyFactory(
            "rate_capped",
            "at most so many assignments a period, chosen by another policy",
            _make_rate_capped,
            wraps="inner",
        ),
        SelectionPolicyFactory(
            "time_windows",
            "assign at some times of the day only, chosen by another policy",
            _make_time_windows,
            wraps="inner",
        ),
    ]


def _make_rate_capped(options: Mapping[str, Any], inner: SelectionPolicy) -> SelectionPolicy:
    return RateCappedPolicy(inner, options["period"], options["limit"], options["task_limit"])


def _make_time_windows(options: Mapping[str, Any], inner: SelectionPolicy) -> SelectionPolicy:
    windows = parse_windows(options["windows"], options["days"], options["utc_offset"])
    return TimeWindowsPolicy(inner, windows)


def _assign(candidates: Sequence[Candidate], tasks: Sequence[OpenTask]) -> list[Assign]:
    """Give each candidate, in turn, the first task that it may take and that has room."""
    room = {task: task.capacity for task in tasks if task.capacity > 0}
    decisions = []
    for candidate in candidates:
        if not room:
            break
        for task in room:
            if candidate.eligible(task.name):
                decisions.append(Assign(candidate.id, task.task_id))
                room[task] -= 1
                if not room[task]:
                    del room[task]
                break
    return decisions
