"""The bytes of uploads that wait to be accumulated."""

from __future__ import annotations

from fcp_core.protocol.status import Code, StatusError


class UploadMemory:
    """Counts what is held of uploads, from their last byte until they are accumulated or dropped.

    :param limit: in bytes.
    :ivar held: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def check(self, size: int) -> None:
        """Check that there is room.

        :raises StatusError: UNAVAILABLE if not; the device may upload again.
        """
        if self.held + size > self._limit:
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.held} bytes of uploads that wait to be aggregated and "
                f"takes no more than {self._limit}; upload again later",
            )

    def hold(self, size: int) -> None:
        """Count bytes."""
        self.held += size

    def release(self, size: int) -> None:
        """Uncount bytes."""
        self.held -= size
