"""Inputs made to stop a server: requests that two readers cut differently, and bombs of size."""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from benchmarks.fuzzing.transport import Request
from fcp_core.protocol import routes

T = TypeVar("T")

#: Bodies of bombs have up to so many bytes, unpacked and as they are sent.
BOMB, PLAIN_BOMB = 64 << 20, 4 << 20

_CALL = "/v1/eligibilityevaltasks/fuzzed:request"
_PATHS = (_CALL, "/healthz", "/nowhere", "/upload/v1/media/x", "/data/x", "/v1/operations/x")
_LENGTHS = ("0", "3", "003", "+3", "-3", "3_0", "0x3", "3, 3", "", "\xb3", "9" * 30, "9" * 5000)
_CODINGS = (
    "chunked",
    "Chunked",
    "identity",
    "identity, chunked",
    "chunked, chunked",
    "\x0bchunked",
)
_ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\0\r\n", b"\r\n ")
_LINES = (
    "Host: localhost",
    "Expect: 100-continue",
    "Connection: keep-alive",
    "Connection: close",
    "Content-Encoding: gzip",
    "Transfer-Encoding : chunked",
    "Content-Length\t: 3",
    ": x",
    "no colon",
    "X: " + " " * 3000 + "y",
)
_CHUNKS = (
    b"3\r\nabc\r\n",
    b"3;a=b\r\nabc\r\n",
    b"+3\r\nabc\r\n",
    b"3\nabc\r\n",
    b"4\r\nabc\r\n",
    b"f" * 16 + b"\r\n",
    b"0" * 100 + b"3\r\nabc\r\n",
    b"1\r\nx\r\n" * 2000,
)
_CHUNK_ENDS = (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\n\n", b"")


def _fields(message: Message) -> list[bytes]:
    """Return every field of a message as it is when it is there and empty: two bytes or three."""
    return [
        _varint(field.number << 3 | 2) + b"\0"
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None or field.cpp_type == field.CPPTYPE_STRING
    ]


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


class Hostile:
    """Makes such inputs.

    :param rng: decides everything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._routes = [route for route in routes.ROUTES if route.verb == "POST"]
        # Few, since they take as long to make as a server takes to refuse many.
        self._packed = [
            gzip.compress(field * (BOMB // len(field)), 6)
            for field in rng.sample(_fields(self._routes[0].request_class()), 4)
        ]

    def raw(self) -> bytes:
        """Return one to three requests as they go over a socket, framed in some doubtful way."""
        return b"".join(self._one() for _ in range(self._pick([1, 1, 2, 3])))

    def bomb(self) -> tuple[Request, bytes | None]:
        """Return a request with a body of a bomb's size; as bytes if it goes over a socket."""
        kind = self._rng.randrange(4)
        route = self._pick(self._routes)
        path = route.url(dict.fromkeys(_names(route.template), "operations/x"))
        if kind == 0:
            packed = self._pick(self._packed)
            return Request("POST", path, packed, (("Content-Encoding", "gzip"),)), None
        if kind == 1:
            size = self._pick([4 << 10, 64 << 10, 256 << 10, 1 << 20, PLAIN_BOMB])
            field = self._pick(_fields(route.request_class()) or [b"\x0a\0"])
            return Request("POST", path, field * (size // len(field))), None
        request = Request("POST", self._pick([path, "/upload/v1/media/x"]))
        head = f"POST {request.path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        if kind == 2:  # much is announced, and little comes
            return request, head + b"Content-Length: %d\r\n\r\nabc" % self._pick([1 << 20, 1 << 30])
        few = self._pick([10, 1000, 20_000])
        return request, head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * few

    def _one(self) -> bytes:
        lines = [
            f"{self._pick(['POST', 'GET'])} {self._pick(_PATHS)} "
            f"HTTP/1.{self._pick([1, 1, 1, 0, 2])}"
        ]
        if self._rng.random() < 0.9:
            lines.append("Host: localhost")
        lengths, codings = self._pick([0, 1, 1, 2]), self._pick([0, 0, 1, 1, 2])
        lines += [f"Content-Length: {self._pick(_LENGTHS)}" for _ in range(lengths)]
        lines += [f"Transfer-Encoding: {self._pick(_CODINGS)}" for _ in range(codings)]
        for _ in range(self._pick([0, 0, 1])):
            lines.insert(self._rng.randrange(len(lines) + 1), self._pick(_LINES))
        end = self._pick(_ENDS) if self._rng.random() < 0.3 else b"\r\n"
        head = end.join(line.encode("latin-1") for line in lines) + end + b"\r\n"
        pieces = [self._pick(_CHUNKS) for _ in range(self._pick([0, 1, 1, 2]))]
        return head + self._pick([b"", b"abc", b"".join(pieces) + self._pick(_CHUNK_ENDS)])

    def _pick(self, items: Sequence[T]) -> T:
        return items[self._rng.randrange(len(items))]


def _names(template: str) -> list[str]:
    return [part.partition("}")[0].partition("=")[0] for part in template.split("{")[1:]]
