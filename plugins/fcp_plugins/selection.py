"""The built-in selection policies: ``fifo`` and ``uniform``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fcp_core.plugins.config import OptionRegistry
from fcp_core.rounds.policies import (
    Assign,
    Candidate,
    OpenTask,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
    SelectionView,
)


class FifoPolicy(SelectionPolicy):
    """Gives the oldest task that a device may take to whoever came first; others wait."""

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        return Selection(_assign(view.candidates, view.tasks))


class UniformPolicy(SelectionPolicy):
    """Waits for candidates to gather, then samples uniformly among them without replacement.

    Whoever came first has no advantage within a window, which keeps fast devices from being
    over-represented. A window starts when there are both a candidate and a task for it.

    :param window: how long candidates gather, in seconds.
    :param min_candidates: how many are enough to sample before the window ends; None: never.
    """

    def __init__(self, window: float, min_candidates: int | None) -> None:
        self._window = window
        self._min_candidates = min_candidates

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        possible = [c for c in view.candidates if any(c.eligible(t.name) for t in view.tasks)]
        if not possible:
            return Selection()
        oldest = min(candidate.arrived for candidate in possible)
        opened = min(task.created for task in view.tasks)
        remaining = max(oldest, opened) + self._window - view.now
        enough = self._min_candidates is not None and len(possible) >= self._min_candidates
        if remaining > 0 and not enough:
            return Selection(tick_in=remaining)
        return Selection(_assign(view.rng.sample(possible, len(possible)), view.tasks))


def add_options(options: OptionRegistry) -> None:
    """Declare the policies' options."""
    options.add(
        "selection.uniform", "window", "duration", "5s", "how long candidates gather before a draw"
    )
    options.add(
        "selection.uniform",
        "min_candidates",
        "int",
        None,
        "draw as soon as so many candidates wait; not set: only when the window ends",
        minimum=1,
    )


def factories() -> list[SelectionPolicyFactory]:
    """Return the factories that the plugin registers."""
    return [
        SelectionPolicyFactory(
            "fifo", "first come, first served: the oldest task first", lambda options: FifoPolicy()
        ),
        SelectionPolicyFactory(
            "uniform",
            "let candidates gather, then draw uniformly without replacement",
            _make_uniform,
        ),
    ]


def _make_uniform(options: Mapping[str, Any]) -> SelectionPolicy:
    return UniformPolicy(options["window"], options["min_candidates"])


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
