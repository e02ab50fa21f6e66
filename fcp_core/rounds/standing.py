"""Why a task does not go on: what was seen of its devices lately, and a sentence of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcp_core.rounds.experience import Lately
from fcp_core.rounds.tasks import TaskState

if TYPE_CHECKING:
    from fcp_core.rounds.task import TaskMachine

#: For so long, in seconds, nothing is missed if nobody comes.
_PATIENCE = 10.0
_REFUSED = ("refused by eligibility: ", "refused at check-in: ", "rejected by selection policy ")


def explain(task: TaskMachine, lately: Lately, waiting: int, now: float) -> str:
    """Say what an open task waits for; ``""`` if it has ended.

    :param waiting: how many devices of its population wait for a task.
    :param now: in seconds since the epoch.
    """
    if task.state is TaskState.CLOSING:
        return "what is accumulating is waited for, then the result is made"
    if task.state is not TaskState.OPEN:
        return ""
    parts = [part for part in (_devices(task, lately, waiting, now), _refused(task)) if part]
    missing = task.missing
    verb = "is" if missing == 1 else "are"
    return f"{missing} of {task.goal_count} {verb} missing: {'; '.join(parts)}"


def _devices(task: TaskMachine, lately: Lately, waiting: int, now: float) -> str:
    """Say who is awaited: those at work, those that wait, or those that do not come."""
    at_work = task.at_work
    if at_work and task.capacity < 1:
        return f"{_working(task)}, and no more are wanted at a time"
    offer = lately.last_offer(task.name)
    if waiting:
        who = f"{_count(waiting, 'device')} {_verb(waiting, 'waits', 'wait')}"
        missing = f"{who}, and the selection policy has given none of them this task yet"
    elif lately.came is None:
        missing = f"no device of population {task.population} has checked in since the server began"
    elif offer is None:
        ago = _ago(now - lately.came)
        missing = f"no eligible device has checked in, and the last one of any kind came {ago}"
    elif now - offer >= _PATIENCE:
        missing = f"no eligible device checked in for {span(now - offer)}{_back(lately)}"
    else:
        missing = f"the last eligible device checked in {_ago(now - offer)}"
    return f"{_working(task)}, and {missing}" if at_work else missing


def _working(task: TaskMachine) -> str:
    begun = task.awaited.begun
    text = f"{_count(task.at_work, 'device')} {_verb(task.at_work, 'is', 'are')} at work"
    if begun:
        text += f" ({begun} of them uploading)"
    if task.awaited.overdue:
        text += f", {task.awaited.overdue} more overdue"
    return text


def _back(lately: Lately) -> str:
    """Say when the last device that came was asked back."""
    if lately.windows is None:
        return ""
    window = lately.windows[1]
    return (
        f" (those without a task are asked back after {span(window.delay_min)} to "
        f"{span(window.delay_max)})"
    )


def _refused(task: TaskMachine) -> str:
    """Name the reasons why devices did not get the task, or did not contribute."""
    found = []
    for reason, count in task.reasons.items():
        begins = next((each for each in _REFUSED if reason.startswith(each)), None)
        if begins is not None:
            verb = _verb(count, "was", "were")
            by = "the policy " if begins.startswith("rejected") else ""
            found.append(f"{count} {verb} refused by {by}{reason[len(begins) :]}")
    if task.dropped:
        found.append(f"{task.dropped} dropped out ({task.outcomes.text()})")
    return "; ".join(found[:3])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


def _ago(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Return a time as people say it, in its largest unit or two: ``14 minutes``, ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 120:
        return _count(whole, "second")
    if whole < 7200:
        return _count(whole // 60, "minute")
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
