"""The selection policy ``lottery``: every device wins a task with the same chance.

Each device that asks draws once, independently of all others, whoever they are and however many
there are (Poisson sampling). That is the sampling that privacy amplification by subsampling is
proved for, which first come, first served is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import OptionRegistry
from fcp_core.rounds.policies import (
    Assign,
    Decision,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
    SelectionView,
)


class LotteryPolicy(SelectionPolicy):
    """Gives a candidate a task with a fixed chance, and sends it away otherwise.

    Nobody is held, so that nobody draws twice. A winner gets one of the tasks that it may take and
    that have room, each with the same chance.

    :param chance: the chance of each draw, above 0 and at most 1.
    :param pause: seconds after which a loser may come back.
    """

    def __init__(self, chance: float, pause: float) -> None:
        self._chance = chance
        self._pause = pause

    def select(self, view: SelectionView) -> Selection:
        """Decide about every candidate."""
        room = {task.task_id: task.capacity for task in view.tasks}
        decisions: list[Decision] = []
        # In an order of its own: who came first must not matter when there is little room.
        for candidate in view.rng.sample(view.candidates, len(view.candidates)):
            wins = view.rng.random() < self._chance
            open_to_it = [
                task for task in view.tasks if room[task.task_id] and candidate.eligible(task.name)
            ]
            if wins and open_to_it:
                task = view.rng.choice(open_to_it)
                room[task.task_id] -= 1
                decisions.append(Assign(candidate.id, task.task_id))
            else:
                window = RetryWindow(self._pause, 2 * self._pause)
                decisions.append(Reject(candidate.id, window))
        return Selection(decisions)


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options."""
    section = "selection.lottery"
    options.add(section, "chance", "float", 0.5, "the chance of a device to win a task", minimum=0)
    options.add(section, "pause", "duration", "1m", "how long a device that lost stays away")


@hookimpl
def fcp_register_selection_policies() -> list[SelectionPolicyFactory]:
    """Offer the lottery."""
    summary = "every device wins a task with the same chance, whoever else asks"
    return [SelectionPolicyFactory("lottery", summary, _make)]


def _make(options: Mapping[str, Any]) -> SelectionPolicy:
    chance = options["chance"]
    if not 0 < chance <= 1:
        raise UsageError(
            f"[fcp:selection.lottery] chance must be above 0 and at most 1, not {chance:g}."
        )
    return LotteryPolicy(chance, options["pause"])
