"""When devices come back: the scenario's retry windows, or those of a pacing function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from fcp_core.lab.scenario import Scenario
from fcp_core.rounds.policies import RetryWindow

#: Says when devices come back: (accepted, load, now) -> window. The load is ``open_tasks``,
#: ``missing``, ``waiting`` and ``check_in_rate``, as for the hook ``fcp_retry_window``.
Pacing: TypeAlias = Callable[[bool, Mapping[str, Any], float], RetryWindow]

#: How long the windows of a pacing function hold, in seconds.
_HOLD = 60.0


class RetryWindows:
    """The retry windows of one run.

    :param pacing: asked once a minute; None: the windows are the scenario's.
    """

    def __init__(self, scenario: Scenario, pacing: Pacing | None) -> None:
        self._start = scenario.start
        self._step = scenario.step
        self._pacing = pacing
        self._accepted, self._rejected = scenario.retry_accepted, scenario.retry_rejected
        self._until = -1

    def at(
        self, step: int, accepted: bool, load: Callable[[int], Mapping[str, Any]]
    ) -> RetryWindow:
        """Return the window of a device that ends its session in a step.

        :param accepted: whether the device had a task.
        :param load: returns the load in that step, for the pacing function.
        """
        if self._pacing is not None and step >= self._until:
            now = self._start + step * self._step
            given = load(step)
            self._accepted = self._pacing(True, given, now)
            self._rejected = self._pacing(False, given, now)
            self._until = step + max(1, int(_HOLD / self._step))
        return self._accepted if accepted else self._rejected
