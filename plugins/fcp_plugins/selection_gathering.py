"""What policies share that wait for candidates to gather before they draw."""

from __future__ import annotations

from fcp_core.rounds.policies import Candidate, SelectionView


class Gathering:
    """A window in which candidates gather; it starts once there are a candidate and a task for it.

    :param window: how long it lasts, in seconds.
    :param min_candidates: how many are enough to end it; None: it always lasts its time.
    """

    def __init__(self, window: float, min_candidates: int | None) -> None:
        self.window = window
        self._min_candidates = min_candidates

    def look(self, view: SelectionView) -> tuple[list[Candidate], float | None]:
        """Return the candidates that there is a task for, and how long to wait for more.

        :returns: None instead of a time if the window is over, or nobody waits.
        """
        opened: dict[str, float] = {}
        for task in view.tasks:
            if task.capacity > 0:
                opened[task.name] = min(task.created, opened.get(task.name, task.created))
        possible = [c for c in view.candidates if c.eligible_for_any(opened)]
        if not possible:
            return possible, None
        begun = min(
            max(created, min(c.arrived for c in possible if c.eligible(name)))
            for name, created in opened.items()
            if any(c.eligible(name) for c in possible)
        )
        remaining = begun + self.window - view.now
        if self._min_candidates is not None and len(possible) >= self._min_candidates:
            return possible, None
        return possible, remaining if remaining > 0 else None
