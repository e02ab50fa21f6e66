"""What the services that devices call have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import UploadMemory
from fcp_core.rounds.events import Event
from fcp_core.rounds.machine import Clock
from fcp_core.rounds.token_parts import TokenSource
from fcp_core.rounds.tokens import Tokens
from fcp_core.server.services.writes import Writes
from fcp_core.server.throttled_log import ThrottledLog

#: What a device may receive as it is; anything else stays in the server.
_PUBLIC = (
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED,
    Code.CANCELLED,
    Code.ABORTED,
)
#: What the engine calls a checkpoint that does not fit.
_UNFIT = (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE)


class Wanted(IntFlag):
    """Whether an upload's bytes are wanted, and where they may lie meanwhile.

    What a device contributes is in no file, unless what is made of it is stored as it is anyway.
    LARGE is added if it will be large, however many bytes are announced.
    """

    NO = 0
    FOR_MEMORY = 1
    FOR_STORAGE = 2
    LARGE = 4


@dataclass(frozen=True)
class Common:
    """What the services that devices call work with.

    :param tokens: makes and reads what devices hold.
    :param secrets: random bytes and ids.
    :param base_url: returns where devices reach the server, with a slash at the end.
    :param data_url: returns what stands in front of ``data/`` in the addresses of downloads.
    :param notify: called with each event.
    :param observed: returns whether anybody would hear of it if all is well with a device.
    :param writes: what is being stored.
    :param memory: what is held of uploads.
    :param place: returns where uploads of such a size go; ``""``: here; None: all of them.
    """

    clock: Clock
    tokens: Tokens
    secrets: TokenSource
    base_url: Callable[[], str]
    data_url: Callable[[], str]
    notify: Callable[[Event], None]
    observed: Callable[[], bool]
    writes: Writes
    memory: UploadMemory
    place: Callable[[int], str] | None = None
    throttled_log: ThrottledLog = field(default_factory=ThrottledLog)

    def warn_of_silent(self, population: str) -> None:
        """Say that the sender of a device holds too many silent places."""
        reason = f"{population}: its sender holds too many silent places (max_silent_per_sender)"
        self.throttled_log.warn(f"silent {population}", reason)

    def check_pressure(self) -> None:
        """Check that what devices bring is stored and accumulated as fast as it comes.

        :raises StatusError: UNAVAILABLE if not, which turns a device away with a retry window.
        """
        problem = self.writes.trouble() or self.memory.pressure()
        if problem:
            raise StatusError(Code.UNAVAILABLE, f"{problem}; check in again later")


def device_status(code: Code, message: str) -> StatusError:
    """Return what a device receives whose assignment ended with this error."""
    if code in _UNFIT:
        code = Code.INVALID_ARGUMENT
    elif code is Code.UNAVAILABLE:
        # The device would send the same call again, three times, for nothing.
        code, message = Code.ABORTED, "the server lost this contribution; check in again"
    elif code not in _PUBLIC:
        code, message = Code.INTERNAL, "the contribution could not be aggregated"
    return StatusError(code, message)
