"""Connections for the links between members: how they are opened on the port for members.

A member asks for one with a signed call; each end then proves, with a number that the other one
drew, that it has the keys of the deployment now: whoever has read an earlier connection has not.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from tornado.iostream import IOStream, StreamClosedError

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.handler import Handler
from fcp_core.server.http.member_calls import CONNECT_TIME, MemberConnections
from fcp_core.server.http.passing import HEADER, Passed, sign
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.member_links import LinkedMember, MemberLinks

#: What a link is asked for at.
LINKS = "/links"
#: The header with who asks, and the number that it drew; and what the other end drew, and proves.
LINK_HEADER = "X-Fcp-Link"

_NONCE = 16
_PROOF = 32
_PART = 256 << 10


class Transport:
    """What a link writes to: a stream of Tornado's."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is closed."""
        if not self._stream.closed():
            self._stream.write(data)

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._stream.closed()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    abort = close


async def carry(stream: IOStream, link: Link) -> None:
    """Give a link what comes, until the connection ends."""
    try:
        while True:
            link.data_received(await stream.read_bytes(_PART, partial=True))
    except StreamClosedError:
        pass
    finally:
        stream.close()
        link.connection_lost(None)


def attach(stream: IOStream, link: Link) -> Awaitable[None]:
    """Begin to use a connection for a link; return what has to be run."""
    stream.set_nodelay(True)
    link.connection_made(cast(asyncio.BaseTransport, Transport(stream)))
    return carry(stream, link)


class LinkHandler(Handler):
    """Opens a link with the member that asks."""

    label = "link"
    throttled = False

    def __init__(self, links: MemberLinks, *request: Any) -> None:
        super().__init__(*request)
        self._links = links

    def allowed(self) -> Sequence[str]:
        """Return the only method."""
        return ("POST",)

    async def serve(self) -> None:
        """Take the connection out of HTTP.

        :raises StatusError: PERMISSION_DENIED unless a member asks.
        """
        member_id, _, nonce = self.headers.get(LINK_HEADER, "").partition(" ")
        if self.passed is None or not self.passed.by_member:
            raise StatusError(Code.PERMISSION_DENIED, "only members have links")
        self.passed.check(nonce.encode("latin-1"))
        other = await self._links.accept(member_id)
        if self.over:
            return
        members = self.context.members
        assert members is not None  # only members listen for others
        stream = self.http.detach()
        self.end(101)
        self.context.leave(self)
        self._links.spawn(_accept(stream, members.table.secrets, nonce, other, self._links))


async def _accept(
    stream: IOStream, keys: Sequence[bytes], theirs: str, other: LinkedMember, links: MemberLinks
) -> None:
    ours = secrets.token_hex(_NONCE)
    head = (
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: fcp-link\r\n"
        f"{LINK_HEADER}: {ours} {_proofs(keys, 'accept', theirs, ours)[0].hex()}\r\n\r\n"
    )
    try:
        await stream.write(head.encode())
        proof = await asyncio.wait_for(stream.read_bytes(_PROOF), CONNECT_TIME)
    except (OSError, asyncio.TimeoutError):
        stream.close()
        return
    if not _is_one(proof, _proofs(keys, "dial", theirs, ours)):
        stream.close()
        return
    carried = attach(stream, other.link)
    links.joined(other)
    await carried


async def dial(
    connections: MemberConnections,
    keys_of: Callable[[], Sequence[bytes]],
    spawn: Callable[[Awaitable[None]], object],
    url: str,
    member_id: str,
    link: Link,
) -> None:
    """Open a connection to a member for a link.

    :param keys_of: returns the secrets of the members.
    :param spawn: runs what carries the link.
    :param url: where it is called.
    :param member_id: this member's.
    :raises OSError: if there is none.
    """
    stream = await connections.connect(url)
    try:
        carried = await asyncio.wait_for(
            _ask(stream, keys_of(), member_id, link), CONNECT_TIME + CONNECT_TIME
        )
    except asyncio.TimeoutError:
        stream.close()
        raise StreamClosedError from None
    except BaseException:
        stream.close()
        raise
    spawn(carried)


async def _ask(
    stream: IOStream, keys: Sequence[bytes], member_id: str, link: Link
) -> Awaitable[None]:
    ours = secrets.token_hex(_NONCE)
    signed = sign(keys, "POST", LINKS, Passed.of_member(ours.encode()))
    head = (
        f"POST {LINKS} HTTP/1.1\r\nHost: member\r\nContent-Length: 0\r\n"
        f"{HEADER}: {signed}\r\n{LINK_HEADER}: {member_id} {ours}\r\n\r\n"
    )
    await stream.write(head.encode())
    answer = (await stream.read_until(b"\r\n\r\n", max_bytes=4096)).decode("latin-1")
    first, *fields = answer.split("\r\n")
    marks = [line.partition(": ")[2] for line in fields if line.startswith(f"{LINK_HEADER}: ")]
    if first.split(" ")[1:2] != ["101"] or not marks:
        raise StreamClosedError
    theirs, _, proof = marks[0].partition(" ")
    try:
        given = bytes.fromhex(proof)
    except ValueError:
        raise StreamClosedError from None
    if not _is_one(given, _proofs(keys, "accept", ours, theirs)):
        raise StreamClosedError
    await stream.write(_proofs(keys, "dial", ours, theirs)[0])
    return attach(stream, link)


def _proofs(keys: Sequence[bytes], side: str, dialer: str, acceptor: str) -> list[bytes]:
    """Return what proves that an end has one of the keys, the oldest first."""
    message = f"fcp link\0{side}\0{dialer}\0{acceptor}".encode()
    return [hmac.digest(key, message, "sha256") for key in keys]


def _is_one(given: bytes, wanted: Sequence[bytes]) -> bool:
    return any(hmac.compare_digest(given, each) for each in wanted)
