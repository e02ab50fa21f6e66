"""Who takes most of a task's places and does nothing shares them with the devices of others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcp_core.rounds.task import TaskMachine

#: From so many places on, they are not looked at for each device that wants one any more...
_MANY = 100
#: ... but as many times this many seconds apart: a look costs a hundredth of that.
_LOOK = 50e-6


def share_places(
    task: TaskMachine, origin: Sequence[str], room: Callable[[], bool], now: float
) -> None:
    """Give a place to a device of one sender as well that another one holds in silence.

    A sender's share is half of what is missing, or of the devices at work where a cap keeps those
    fewer, while others want to take part. The oldest of what it holds beyond that, without a sign
    of life and without as many contributions of its own, is taken for overdue at once, until there
    is room for one more device. If its devices come after all, they contribute like any other.

    :param origin: what the one that wants a place is known by; () if it tells nobody apart.
    :param room: returns whether there is room.
    :param now: in seconds since the epoch.
    """
    awaited = task.awaited
    silent = awaited.steps[0]
    if not origin or now < awaited.look_again or not awaited.senders.limited:
        return
    awaited.look_again = now + len(silent) * _LOOK if len(silent) >= _MANY else now
    held = Counter(chain.from_iterable(record.origin for record in silent.values()))
    share = max(1, min(task.missing, task.at_work) / 2)
    # As many as are wanted may be given away once; of a task whose devices are often silent, all.
    most = math.inf if awaited.experience.wordless else task.goal_count
    for record in list(silent.values()):
        if room() or awaited.overdue >= most:
            return
        others = [name for name in record.origin if name not in origin]
        if any(share < held[name] > awaited.senders.credit(name) for name in others):
            held.subtract(record.origin)
            awaited.lose(record, 0)
