"""What another process of the server, or another member, received, and the calls to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fcp_core.aggregation.engine import HeldBody


class RemoteProcess(Protocol):
    """Calls another process of the server."""

    @property
    def stores(self) -> bool:
        """Whether it stores what it accumulates."""
        ...

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call it; UNAVAILABLE once it has ended."""
        ...

    def tell(self, name: str, *arguments: Any) -> None:
        """Call it and do not wait; nothing happens once it has ended."""
        ...


class RemoteUpload(HeldBody):
    """An upload that another process received.

    :param number: what that process calls it.
    :param size: in bytes.
    """

    def __init__(self, process: RemoteProcess, number: int, size: int) -> None:
        self.process = process
        self.number = number
        self._size = size
        #: The bytes, once they were brought here.
        self.data: bytes | None = None
        #: Whether the other process was told to accumulate it, or to drop it.
        self.taken = False

    @property
    def helper(self) -> Any:
        """The member that it is at, if that stores what it accumulates."""
        return self.process if self.data is None and self.process.stores else None

    def __len__(self) -> int:
        """Return its size."""
        return self._size

    def drop(self) -> None:
        """Have the other process drop it."""
        self.taken = True
        if self.data is None:
            self.process.tell("drop_body", self.number)

    def move(self, process: RemoteProcess, number: int) -> bool:
        """Note that it is at another process, or link, now; return whether it is still needed."""
        if self.taken or self.data is not None:
            return False
        self.process, self.number = process, number
        return True

    async def contribute(self, stream: str, contribution: str, counts: Sequence[int]) -> None:
        """Have its member accumulate and store it, as ``HeldBody.contribute``."""
        self.taken = True
        await self.process.call("contribute", stream, contribution, self.number, *counts)

    async def fetch(self) -> bytes:
        """Bring it here, in pieces: a large frame would hold up all others.

        :raises StatusError: ABORTED if the other process has lost it.
        """
        pieces: list[bytes] = []
        received = 0
        while received < self._size and self.data is None:
            pieces.append(await self.process.call("read_body", self.number, received))
            received += len(pieces[-1])
        if self.data is None:
            self.drop()
            self.data = b"".join(pieces)
        return self.data
