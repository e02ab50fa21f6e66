"""When a device comes back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fcp_core.protocol.status import Code

if TYPE_CHECKING:
    from fcp_core.protocol.protos import common_pb2, eligibility_eval_tasks_pb2

#: Codes after which trying again soon is pointless, whoever produced them.
PERMANENT_CODES = frozenset({Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED})

_PERMANENT_SECONDS = 4 * 3600.0
_TRANSIENT_SECONDS = 15 * 60.0
_JITTER = 0.2


class RetrySchedule:
    """Chooses the time of the next session as this one goes on.

    The server's two windows are drawn from once, on receipt; a permanent error overrides both.

    :param now: the clock, in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float], rng: random.Random) -> None:
        self._now = now
        self._rng = rng
        self._accepted: float | None = None
        self._rejected: float | None = None
        self._is_accepted = False
        self._permanent = False

    def receive(self, response: eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse) -> None:
        """Draw both times from the windows of an eligibility response, a rejecting one too."""
        self._accepted = self._draw(response.retry_window_if_accepted)
        self._rejected = self._draw(response.retry_window_if_rejected)

    def accept(self) -> None:
        """Use the window for accepted devices."""
        self._is_accepted, self._permanent = True, False

    def reject(self) -> None:
        """Use the window for rejected devices."""
        self._is_accepted, self._permanent = False, False

    def fail(self, code: Code) -> None:
        """Note a call's failure: permanent codes send the device away, others reject it."""
        if code in PERMANENT_CODES:
            self.fail_permanently()
        else:
            self.reject()

    def fail_permanently(self) -> None:
        """Send the device away for hours, whatever the server's windows say."""
        self._permanent = True

    def retry_at(self) -> float:
        """Return the time to come back, in seconds since the epoch."""
        if self._permanent:
            return self._now() + self._jittered(_PERMANENT_SECONDS)
        chosen = self._accepted if self._is_accepted else self._rejected
        return chosen if chosen is not None else self._now() + self._jittered(_TRANSIENT_SECONDS)

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _draw(self, window: common_pb2.RetryWindow) -> float:
        low = max(0.0, seconds_of(window.delay_min))
        high = max(low, seconds_of(window.delay_max))
        return self._now() + self._rng.uniform(low, high)


def seconds_of(duration: object) -> float:
    """Return a ``Duration`` in seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9  # type: ignore[attr-defined]
