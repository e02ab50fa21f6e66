"""The limits of one server: sizes, times, and the bytes in flight."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fcp_core.errors import UsageError
from fcp_core.protocol.status import StatusError, code_from_http
from fcp_core.server.own_process import OTHER_FILES, allowed_files

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config

logger = logging.getLogger("fcp.server")

#: Devices and the admin client send headers far smaller than this, in bytes.
MAX_HEADER = 64 << 10
#: Requests that may come at once under any rate limit: a device's session takes about ten.
MIN_BURST_PER_ADDRESS = 100
MIN_BURST_PER_KEY = 1000
#: As many seconds of the rate may come at once.
BURST_SECONDS = 10

#: The largest bodies, in bytes, of calls that anybody may send, or that carry little: what a call's
#: token is worth is known only after parsing. Those of aggregation protocols have ``max_call``.
SMALL_CALLS = {
    "RequestEligibilityEvalTask": 64 << 10,
    "ReportEligibilityEvalTaskResult": 64 << 10,
    "StartTaskAssignment": 256 << 10,
    "PerformMultipleTaskAssignments": 256 << 10,
    "ReportTaskResult": 64 << 10,
    "GetOperation": 4 << 10,
    "CancelOperation": 4 << 10,
}
#: How many of the largest calls may be received at a time.
CALLS_AT_ONCE = 64
#: As much of a call's body is always taken, in bytes: what devices send is smaller, and so never
#: waits for somebody's large calls. The limit on connections bounds the sum. As much of an upload
#: is taken while less than half of what may be held waits to be accumulated.
FREE_OF_CALL = 16 << 10


@dataclass(frozen=True)
class Limits:
    """The limits of a server; most are core options of the same name.

    Sizes are in bytes, times in seconds.

    :param max_body: the largest request body as it is sent.
    :param max_decompressed: the largest request body after decompression.
    :param max_call: the largest body of a protocol call, as it is sent and after decompression.
    :param max_in_flight: the sum of what was received of all bodies but those of calls, and of the
        uploads that wait to be submitted or folded.
    :param max_header: the largest request line and header together; no option.
    :param idle_timeout: how long a connection may take to send the next request's header, and a
        call its body.
    :param body_timeout: how long an upload may take, and a download or the reading of an answer.
    :param drain_notice: how long connections are accepted after a stop was requested, at least.
    :param drain_timeout: how long requests may go on after a stop was requested.
    :param max_connections: connections at a time; what comes beyond is closed at once.
    :param max_connections_per_address: those of one address, or one IPv6 /64, among them; 0: any
        number. This machine itself may have any number.
    :param rate_per_address: requests a second from one address, or one IPv6 /64; 0: any number.
    :param burst_per_address: how many of them may come at once; follows from the rate.
    :param rate_per_key: requests a second with one API key; 0: any number.
    :param burst_per_key: how many of them may come at once; follows from the rate.
    """

    max_body: int = 1 << 30
    max_decompressed: int = 1 << 30
    max_call: int = 1 << 20
    max_in_flight: int = 2 << 30
    max_header: int = MAX_HEADER
    idle_timeout: float = 60.0
    body_timeout: float = 600.0
    drain_notice: float = 0.0
    drain_timeout: float = 10.0
    max_connections: int = 10_000
    max_connections_per_address: int = 1_000
    rate_per_address: float = 0.0
    burst_per_address: int = MIN_BURST_PER_ADDRESS
    rate_per_key: float = 0.0
    burst_per_key: int = MIN_BURST_PER_KEY

    @classmethod
    def from_config(cls, config: Config) -> Limits:
        """Read the limits from the configuration.

        :raises UsageError: if a single body of the allowed size could never be held.
        """
        fixed = ("max_header", "burst_per_address", "burst_per_key")
        names = [field.name for field in fields(cls) if field.name not in fixed]
        given = {name: config.get(name) for name in names}
        limits = cls(
            **given,
            burst_per_address=_burst(given["rate_per_address"], MIN_BURST_PER_ADDRESS),
            burst_per_key=_burst(given["rate_per_key"], MIN_BURST_PER_KEY),
        )
        limits = limits.within(allowed_files())
        for name in ("max_body", "max_decompressed"):
            if getattr(limits, name) > limits.max_in_flight:
                raise UsageError(
                    f"{name} ({getattr(limits, name)}, from {config.origin('', name)}) is above "
                    f"max_in_flight ({limits.max_in_flight}, from "
                    f"{config.origin('', 'max_in_flight')}): no such body could be received."
                )
        return limits

    def within(self, files: float) -> Limits:
        """Return the limits of a process that may have so many files open.

        Beyond that it could accept nothing, nor write to its storage.
        """
        room = max(files / 2, files - OTHER_FILES)
        if room >= self.max_connections:
            return self
        connections = int(room)
        # Nobody is to have all of them.
        of_address = min(self.max_connections_per_address, max(1, connections // 4))
        logger.info(
            "this process may open %d files, so it takes %d connections at a time, not %d "
            "(max_connections): see 'ulimit -n', or LimitNOFILE of systemd",
            *(files, connections, self.max_connections),
        )
        return replace(self, max_connections=connections, max_connections_per_address=of_address)

    @property
    def max_calls_in_flight(self) -> int:
        """The sum of what is received of the bodies of calls."""
        return CALLS_AT_ONCE * self.max_call


@lru_cache(maxsize=256)
def limits_of_call(limits: Limits, method: str) -> Limits:
    """Return the limits of a server as they are for the body of one method's calls."""
    size = min(SMALL_CALLS.get(method, limits.max_call), limits.max_call)
    return replace(
        limits,
        max_body=min(size, limits.max_body),
        max_decompressed=min(size, limits.max_decompressed),
    )


def _burst(rate: float, least: int) -> int:
    return max(least, math.ceil(rate * BURST_SECONDS))


def http_error(status: int, message: str) -> StatusError:
    """Return an error that HTTP has a status for and the canonical codes have not (405, 413, 431).

    Its code is the one that a device makes of the status.
    """
    return StatusError(code_from_http(status), message, http=status)
