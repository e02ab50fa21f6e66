"""Rate limits: token buckets by address and by key, in bounded memory."""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from fcp_core.protocol.status import Code, StatusError

#: The most buckets that one limit keeps; the one that was used least recently goes first.
MAX_BUCKETS = 65536

#: The /64 network of ``::1``. Nothing else is in it.
_LOOPBACK_6 = "0"


class RateLimitError(StatusError):
    """A rate limit was exceeded.

    :param wait: seconds after which the next request is let through.
    """

    def __init__(self, what: str, wait: float) -> None:
        self.wait = math.ceil(wait)
        super().__init__(
            Code.RESOURCE_EXHAUSTED,
            f"too many requests from this {what} (rate_per_{what.split()[-1]}); "
            f"come back in {self.wait} s",
        )


class RateLimit:
    """A token bucket for each of many keys.

    A bucket that was dropped for want of room begins full again, which errs towards letting
    requests through.

    :param what: what the keys are, for the message.
    :param rate: requests a second that go on for ever; 0: no limit.
    :param burst: requests that may come at once.
    """

    def __init__(
        self,
        what: str,
        rate: float,
        burst: int,
        *,
        bound: int = MAX_BUCKETS,
        time: Callable[[], float] = time.monotonic,
    ) -> None:
        #: Whether there is a limit at all.
        self.active = rate > 0
        self._what = what
        self._rate = rate
        self._burst = float(burst)
        self._bound = bound
        self._time = time
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many buckets there are."""
        return len(self._buckets)

    def take(self, key: str) -> None:
        """Let one request through.

        :raises RateLimitError: if the key's bucket is empty; nothing is taken then.
        """
        if not self._rate:
            return
        now = self._time()
        tokens, last = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._bound:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimitError(self._what, (1 - tokens) / self._rate)


@functools.lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """Return what stands for an address: itself, or the /64 network of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(int(ip) >> 64)
    return str(ip)


def is_loopback(key: str) -> bool:
    """Whether an :func:`address_key` stands for this machine itself."""
    return key == _LOOPBACK_6 or key.startswith("127.")
