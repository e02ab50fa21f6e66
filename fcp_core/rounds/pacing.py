"""What pace steering goes by: how busy a population is, and retry windows as devices read them."""

from __future__ import annotations

from collections import deque

from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.wkt import Duration
from fcp_core.rounds.policies import RetryWindow

#: Seconds over which the rate of check-ins is measured.
RATE_WINDOW = 60.0


class CheckInRate:
    """Counts check-ins over the last minute, second by second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque()
        self._sum = 0

    def count(self, now: float) -> None:
        """Count one check-in."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))
        self._sum += 1
        self._forget(now)

    def rate(self, now: float) -> float:
        """Return check-ins a second over the last minute."""
        self._forget(now)
        return self._sum / RATE_WINDOW

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= now - RATE_WINDOW:
            self._sum -= self._seconds.popleft()[1]


def duration(seconds: float) -> Duration:
    """Return seconds as a Duration, to the nanosecond."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def window_message(window: RetryWindow) -> common.RetryWindow:
    """Return a retry window as it goes over the wire."""
    return common.RetryWindow(
        delay_min=duration(window.delay_min), delay_max=duration(window.delay_max)
    )
