"""How often a task can be repeated before a ledger refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fcp_core.rounds.ledger import Planned
from fcp_core.server.services.releases import TaskRelease

#: What is further away is not looked at.
MOST = 1000


async def repetitions(release: TaskRelease, others: Sequence[Planned], every: float) -> int | None:
    """Return how often a task can be offered from now on.

    :param release: of the task, as if it were submitted now.
    :param others: the tasks of its population that are open.
    :param every: after how many seconds it is offered again.
    :returns: None if no ledger refuses the :data:`MOST` next ones, or if it goes on with a series,
        whose cost is that of all its rounds together.
    :raises StatusError: INVALID_ARGUMENT if there can be no such release; UNAVAILABLE.
    """
    await release.plan()
    planned = release.planned
    if planned.series:
        return None

    async def refused(number: int) -> bool:
        """Whether the task is refused after so many that were not."""
        times = [planned.created + place * every for place in range(number + 1)]
        *before, this = (replace(planned, created=time) for time in times)
        return bool(await release.problems(this, [*others, *before]))

    if not await refused(MOST):
        return None
    least, most = 0, MOST
    while least < most:
        middle = (least + most) // 2
        if await refused(middle):
            most = middle
        else:
            least = middle + 1
    return least
