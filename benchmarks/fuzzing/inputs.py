"""Fuzzing a server: requests that no device would send.

A :class:`Fuzzer` makes inputs from a source of randomness: messages with arbitrary fields, bytes of
valid requests changed here and there, addresses and headers likewise, all salted with names and
tokens of sessions that are really open. How they reach the server is ``fuzz_transport``'s affair.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from google.protobuf.message import Message

from benchmarks.fuzzing.transport import Request
from fcp_core.protocol import routes

T = TypeVar("T")

_OFFERED = {"EligibilityEvalTasks", "TaskAssignments", "Aggregations", "Operations"}
_VARIABLE = re.compile(r"\{(\w+)(?:=[^}]*)?\}")

#: The most names and tokens that are remembered.
_KEEP = 64

_ODD = [
    "",
    "/",
    "..",
    "%",
    "%zz",
    "%00",
    "%2F",
    ":",
    "a/b",
    "\x00",
    "\u00fc",
    "operations/",
    "0",
    "-1",
    "x" * 300,
]
_ODD_HEADERS = [
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "br"),
    ("Content-Encoding", "identity"),
    ("Accept-Encoding", "gzip"),
    ("Accept-Encoding", "gzip;q=0"),
    ("Expect", "100-continue"),
    ("Range", "bytes=0-3"),
    ("Range", "bytes=9-1"),
    ("If-None-Match", "*"),
    ("If-Range", '"x"'),
    ("Content-Type", "text/html"),
    ("X-Goog-Api-Key", "\u00fc"),
    ("Cookie", "a=b; ="),
    ("X-Forwarded-For", "1.2.3.4"),
    ("Authorization", "Bearer x"),
]


@dataclass
class Known:
    """Names and tokens that mean something to the server at the moment."""

    populations: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    aggregations: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def add(self, kind: str, value: str) -> None:
        """Remember a name; the oldest goes if there are many."""
        values: list[str] = getattr(self, kind)
        if value and value not in values:
            values.append(value)
            del values[:-_KEEP]

    def all(self) -> list[str]:
        """Return all of them."""
        return [value for values in vars(self).values() for value in values]


#: Which known names a variable of a path, or a field, may have.
KINDS = {
    "population_name": "populations",
    "session_id": "sessions",
    "aggregation_id": "aggregations",
    "authorization_token": "tokens",
    "client_token": "tokens",
    "name": "operations",
    "resource_name": "uploads",
    "task_name": "tasks",
    "task_names": "tasks",
}


class Fuzzer:
    """Makes inputs.

    :param rng: decides everything.
    :param known: what the inputs are salted with.
    :param checkpoint: a valid contribution.
    """

    def __init__(self, rng: random.Random, known: Known, checkpoint: bytes) -> None:
        self.rng = rng
        self.known = known
        self._checkpoint = checkpoint
        # Those of services that a plain server does not offer are not worth many inputs.
        self._routes = [
            route
            for route in routes.ROUTES
            for _ in range(12 if route.service.rpartition(".")[2] in _OFFERED else 1)
        ]

    def request(self) -> Request:
        """Return the next input."""
        kind = self.rng.random()
        if kind < 0.10:
            request = self._upload()
        elif kind < 0.16:
            request = self._download()
        elif kind < 0.18:
            request = Request(
                self._pick(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"]),
                self._pick(["/", "*", "/healthz", "/readyz", "/metrics", "//", "/v1", "/?", "/v1/"])
                + self._text(),
            )
        else:
            request = self.call()
        for _ in range(self._pick([0, 0, 0, 1, 1, 2])):
            request = self._spoil(request)
        return Request(
            request.method, _line(request.path), request.body, _sendable(request.headers)
        )

    def call(self) -> Request:
        """Return a call of the protocol, with known or made-up names and any fields."""
        route = self._pick(self._routes)
        path = _VARIABLE.sub(lambda found: self._variable(found[1]), route.template)
        message = route.request_class()
        if self.rng.random() < 0.8:
            self.fill(message)
        body = message.SerializeToString()
        query = self._pick(["?%24alt=proto", "?$alt=proto", "", "?%24alt=json", "?&=%"])
        return self._packed(Request(route.verb, path + query, body))

    def fill(self, message: Message, depth: int = 0) -> None:
        """Set fields of a message to anything."""
        for descriptor in message.DESCRIPTOR.fields:
            if self.rng.random() < (0.5 if depth else 0.4):
                continue
            if _is_map(descriptor):
                continue
            count = self._pick([1, 1, 2, 5]) if _is_repeated(descriptor) else 1
            for _ in range(count):
                self._set(message, descriptor, depth)

    def spoil_bytes(self, data: bytes) -> bytes:
        """Change bytes here and there."""
        rng = self.rng
        spoilt = bytearray(data)
        for _ in range(self._pick([1, 1, 2, 4, 16])):
            at = rng.randrange(len(spoilt) + 1)
            what = rng.randrange(6)
            if what == 0 and spoilt:
                spoilt[at % len(spoilt)] ^= 1 << rng.randrange(8)
            elif what == 1:
                spoilt[at:at] = rng.randbytes(self._pick([1, 2, 8, 64]))
            elif what == 2:
                del spoilt[at : at + self._pick([1, 2, 8, 64])]
            elif what == 3:
                del spoilt[at:]
            elif what == 4:
                spoilt[at:at] = spoilt[: self._pick([1, 8, 64, 4096])]
            else:
                spoilt[at : at + 4] = self._pick(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\x80\x80\x80", b"\xff\xff\xff\x7f"]
                )
        return bytes(spoilt[: 1 << 16])

    def spoil_raw(self, request: Request) -> bytes:
        """Return a request as it goes over a socket, with bytes changed."""
        data = request.raw()
        return data if self.rng.random() < 0.3 else self.spoil_bytes(data)

    def _upload(self) -> Request:
        name = quote(self._value("resource_name"), safe="/~")
        query = self._pick(["?upload_protocol=raw", "", "?upload_protocol=x"])
        body = self._checkpoint
        if self.rng.random() < 0.5:
            body = self.spoil_bytes(body)
        return self._packed(Request("POST", f"/upload/v1/media/{name}{query}", body))

    def _download(self) -> Request:
        name = self._pick(self.known.files) if self.known.files else self._text()
        return Request(self._pick(["GET", "GET", "HEAD", "POST"]), "/data/" + name)

    def _packed(self, request: Request) -> Request:
        if self.rng.random() < 0.5:
            return request
        body = gzip.compress(request.body, 1)
        return Request(
            request.method, request.path, body, (*request.headers, ("Content-Encoding", "gzip"))
        )

    def _spoil(self, request: Request) -> Request:
        method, path, body, headers = (
            request.method,
            request.path,
            request.body,
            request.headers,
        )
        what = self.rng.randrange(10)
        if what < 5:
            body = self.spoil_bytes(body)
        elif what < 7:
            path = self.spoil_bytes(path.encode()).decode("latin-1")
        elif what < 9:
            headers = (*headers, self._pick(_ODD_HEADERS))
        else:
            method = self._pick(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"])
        return Request(method, path, body, headers)

    def _set(self, message: Message, descriptor: Any, depth: int) -> None:
        if descriptor.message_type is not None:
            if depth < 4:
                child = getattr(message, descriptor.name)
                child = child.add() if _is_repeated(descriptor) else child
                child.SetInParent()
                self.fill(child, depth + 1)
            return
        value = self._scalar(descriptor)
        if _is_repeated(descriptor):
            getattr(message, descriptor.name).append(value)
        else:
            setattr(message, descriptor.name, value)

    def _scalar(self, descriptor: Any) -> Any:
        rng = self.rng
        kind = descriptor.cpp_type
        if kind == descriptor.CPPTYPE_STRING:
            if descriptor.type == descriptor.TYPE_BYTES:
                return rng.randbytes(self._pick([0, 1, 40]))
            return self._value(descriptor.name).encode("utf-8", "replace").decode()
        if kind == descriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if kind in (descriptor.CPPTYPE_DOUBLE, descriptor.CPPTYPE_FLOAT):
            return self._pick([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")])
        if kind == descriptor.CPPTYPE_ENUM:
            return self._pick([0, 1, 2, 5, 16, 999, -1])
        unsigned = kind in (descriptor.CPPTYPE_UINT32, descriptor.CPPTYPE_UINT64)
        wide = kind in (descriptor.CPPTYPE_INT64, descriptor.CPPTYPE_UINT64)
        top = (1 << (64 if wide else 32) - (0 if unsigned else 1)) - 1
        return self._pick([0, 1, 7, top] + ([] if unsigned else [-1, -top - 1]))

    def _value(self, name: str) -> str:
        kind = KINDS.get(name)
        if kind is not None and self.rng.random() < 0.85:
            values: Sequence[str] = getattr(self.known, kind)
            if values:
                return self._pick(values)
        return self._text()

    def _variable(self, name: str) -> str:
        value = self._value(name)
        if self.rng.random() < 0.02:
            return value
        return quote(value, safe="/~" if name == "name" else "~")

    def _text(self) -> str:
        if self.rng.random() < 0.3:
            return self._pick(self.known.all() or _ODD)
        if self.rng.random() < 0.5:
            return self._pick(_ODD)
        return self.rng.randbytes(self._pick([1, 4, 20])).decode("latin-1")

    def _pick(self, items: Sequence[T]) -> T:
        return items[self.rng.randrange(len(items))]


def _line(path: str) -> str:
    """Return a path that a request line can carry: Tornado lets no other through."""
    kept = "".join(c for c in path if c > " " and c != "\x7f")
    return kept.encode("utf-8", "replace").decode("latin-1") or "/"


def _sendable(headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(dict(headers).items())


def _is_repeated(descriptor: Any) -> bool:
    # Newer protobuf warns of the label, older has nothing else.
    found = getattr(descriptor, "is_repeated", None)
    return bool(descriptor.label == descriptor.LABEL_REPEATED if found is None else found)


def _is_map(descriptor: Any) -> bool:
    kind = descriptor.message_type
    return kind is not None and kind.GetOptions().map_entry
