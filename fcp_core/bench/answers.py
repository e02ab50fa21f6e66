"""Reads HTTP/1.1 answers from bytes, without input or output: for load generators and fuzzers."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """An answer: its HTTP status, its body and what that is said to be."""

    status: int
    body: bytes
    content_type: str = ""


class AnswerReader:
    """Reads the answers of one connection, one after another."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._head: _Head | None = None
        #: Whether another answer may follow the last one.
        self.reusable = True

    def feed(self, data: bytes) -> Answer | None:
        """Take what came; return an answer if one is complete, and keep the rest.

        :raises ValueError: if it is no HTTP/1.
        """
        self._data += data
        while self._head is None or self._head.status < 200:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._head = _Head.parse(bytes(self._data[:end]))
            del self._data[: end + 4]
        head = self._head
        if head.chunked:
            found = _unchunk(self._data)
            return None if found is None else self._finish(*found)
        if head.until_end or len(self._data) < head.length:
            return None
        return self._finish(bytes(self._data[: head.length]), head.length)

    def end(self) -> Answer | None:
        """Take the end of the connection; return the answer that it completes.

        :raises ConnectionResetError: if an answer is cut short.
        """
        self.reusable = False
        if self._head is not None and self._head.until_end:
            return self._finish(bytes(self._data), len(self._data))
        if self._head is not None or self._data:
            raise ConnectionResetError("the server closed the connection")
        return None

    def _finish(self, body: bytes, length: int) -> Answer:
        head = self._head
        assert head is not None  # an answer has begun
        del self._data[:length]
        self._head = None
        if head.last:
            self.reusable = False
        return Answer(head.status, body, head.content_type)


class _Head(NamedTuple):
    """What matters of an answer's header."""

    status: int
    length: int
    chunked: bool
    until_end: bool
    last: bool
    content_type: str

    @staticmethod
    def parse(data: bytes) -> _Head:
        """Read a header.

        :raises ValueError: if it is none of HTTP/1.
        """
        first, _, rest = data.partition(b"\r\n")
        if not first.startswith(b"HTTP/1."):
            raise ValueError("the server does not answer with HTTP/1.1")
        status = int(first[9:12])
        length, chunked, last = -1, False, first.startswith(b"HTTP/1.0")
        content_type = ""
        for line in rest.split(b"\r\n"):
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"content-type":
                content_type = value.strip().decode("latin-1")
            elif name == b"transfer-encoding":
                chunked = value.strip().lower() == b"chunked"
            elif name == b"connection":
                last = value.strip().lower() == b"close"
        if status < 200 or status in (204, 304):
            length, chunked = 0, False
        return _Head(status, length, chunked, length < 0 and not chunked, last, content_type)


def _unchunk(data: bytearray) -> tuple[bytes, int] | None:
    """Return a body in chunks and where it ends, or None if its end has not come yet."""
    at = 0
    pieces: list[bytes] = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(data[at:end].partition(b";")[0], 16)
        at = end + 2
        if size == 0:
            # There may be trailers, and then an empty line.
            end = at if data.startswith(b"\r\n", at) else data.find(b"\r\n\r\n", at) + 2
            return (b"".join(pieces), end + 2) if end >= at else None
        if len(data) < at + size + 2:
            return None
        pieces.append(bytes(data[at : at + size]))
        at += size + 2
