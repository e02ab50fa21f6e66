"""The ``fair_share`` policy: fair to tasks by counting, to devices without knowing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.rounds.policies import (
    Assign,
    Candidate,
    OpenTask,
    Selection,
    SelectionPolicy,
    SelectionView,
)
from fcp_plugins.selection_gathering import Gathering


class FairSharePolicy(SelectionPolicy):
    """Serves the least served task first, and within it whoever has been passed over.

    Tasks are served by name, so that the rounds of one computation count together. The state holds
    a virtual time, and for each name that is ahead of it the time at which that name's next device
    is due: a device costs one unit divided by the name's share. A name that was away comes back at
    the present virtual time; it cannot save up.

    Nothing is kept about devices. Candidates that may take the fewest of the shown tasks go first,
    since the others have other chances; then those who have waited the most windows; the rest is
    drawn, so that being fast is no advantage.

    :param shares: patterns of names and their shares; the first that matches counts, else 1.
    """

    def __init__(
        self, window: float, min_candidates: int | None, shares: Sequence[tuple[str, float]] = ()
    ) -> None:
        self._gathering = Gathering(window, min_candidates)
        self._shares = tuple(shares)

    def select(self, view: SelectionView) -> Selection:
        """Decide."""
        possible, tick_in = self._gathering.look(view)
        if tick_in is not None or not possible:
            return Selection(state=view.state, tick_in=tick_in)
        state: Mapping[str, Any] = view.state or {"time": 0.0, "due": {}}
        time: float = state["time"]
        due: dict[str, float] = dict(state["due"])
        rooms: dict[str, list[OpenTask]] = {}
        for task in view.tasks:
            if task.capacity > 0:
                rooms.setdefault(task.name, []).append(task)
        left = {task.task_id: task.capacity for task in view.tasks}
        queues = self._queues(view, possible, list(rooms))
        served: set[str] = set()
        decisions = []
        while queues:
            name = min(queues, key=lambda n: max(time, due.get(n, 0.0)))
            candidate = next((c for c in queues[name] if c not in served), None)
            if candidate is None:
                del queues[name]
                continue
            served.add(candidate)
            tasks = rooms[name]
            decisions.append(Assign(candidate, tasks[0].task_id))
            left[tasks[0].task_id] -= 1
            if not left[tasks[0].task_id]:
                del tasks[0]
                if not tasks:
                    del queues[name]
            time = max(time, due.get(name, 0.0))
            due[name] = time + 1.0 / self._share(name)
        ahead = {name: at for name, at in due.items() if at > time}
        return Selection(decisions, {"time": time, "due": ahead})

    def _queues(
        self, view: SelectionView, candidates: Sequence[Candidate], names: Sequence[str]
    ) -> dict[str, Iterator[str]]:
        """Return, for each name, the ids of those who may take it, whose turn it is first."""
        window = max(self._gathering.window, 1.0)

        def turn(candidate: Candidate) -> tuple[int, int]:
            choices = sum(candidate.eligible(name) for name in names)
            return choices, -int((view.now - candidate.arrived) / window)

        in_turn = sorted(view.rng.sample(candidates, len(candidates)), key=turn)
        return {name: iter([c.id for c in in_turn if c.eligible(name)]) for name in names}

    def _share(self, name: str) -> float:
        return next((share for pattern, share in self._shares if fnmatchcase(name, pattern)), 1.0)


def parse_shares(items: Sequence[str]) -> list[tuple[str, float]]:
    """Read ``NAME=NUMBER`` items.

    :raises UsageError: if one is not of that form, or its number is not above 0.
    """
    shares = []
    for item in items:
        name, _, number = item.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not name.strip() or not 0 < share < float("inf"):
            raise UsageError(
                f"[fcp:selection.fair_share] shares: {item!r} is not NAME=NUMBER with a number "
                f"above 0, such as train/*=3."
            )
        shares.append((name.strip(), share))
    return shares
