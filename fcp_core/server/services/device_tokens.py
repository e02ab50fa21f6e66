"""What devices hold: tokens, made and checked with nothing to look up, and operations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tokens import (
    ExpiredTokenError,
    Kind,
    Token,
    Tokens,
    check_sender,
    scope_of,
    uuid_bytes,
)

#: Seconds for which what a device holds outlives its purpose: one that comes too late is still
#: known, and answered accordingly.
RETENTION = 3600.0

_PREFIX = "operations/"

#: What the protocol's own words for the kinds of token are.
_NAMES = {
    Kind.SESSION: "session",
    Kind.OPERATION: "operation",
    Kind.AUTHORIZATION: "authorization token",
    Kind.CLIENT: "client token",
    Kind.UPLOAD: "upload",
}


def label(session_id: str) -> str:
    """Return what events and logs call a session: a hash, since the id itself is a capability."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AssignmentTickets:
    """What one assignment's device is given by its protocol; see ``rounds.protocols.Tickets``.

    :param assignment: its id, 32 hexadecimal digits.
    :param expires: when all of them do, in seconds.
    :param place: returns where uploads go; None, or ``""``: where everything goes.
    :param key: the key that signed what they follow from, so that they stay the same when keys are
        rotated.
    """

    tokens: Tokens
    aggregation_id: str
    assignment: str
    sender: str | None
    expires: float
    base_url: Callable[[], str]
    key: int | None = None
    place: Callable[[], str] | None = None

    def make(self, kind: Kind, extra: str = "") -> str:
        """Return a token of the assignment."""
        return self.tokens.make(
            kind,
            uuid_bytes(self.aggregation_id),
            bytes.fromhex(self.assignment),
            self.sender,
            self.expires,
            extra.encode(),
            key=self.key,
        )

    @property
    def authorization_token(self) -> str:
        """What the device begins to contribute with."""
        return self.make(Kind.AUTHORIZATION)

    @property
    def client_token(self) -> str:
        """What the device proves itself with after its first call."""
        return self.make(Kind.CLIENT)

    def upload_name(self, slot: str) -> str:
        """Return the resource name of an upload."""
        return self.make(Kind.UPLOAD, slot)

    def operation(self, method: str) -> str:
        """Return the token in the name of a call's operation."""
        return self.make(Kind.OPERATION, method)

    @property
    def forwarding(self) -> ForwardingInfo:
        """Where the protocol's own calls go."""
        return ForwardingInfo(target_uri_prefix=self.base_url())

    @property
    def upload_forwarding(self) -> ForwardingInfo:
        """Where uploads go."""
        place = "" if self.place is None else self.place()
        return ForwardingInfo(target_uri_prefix=place) if place else self.forwarding


def read_token(
    tokens: Tokens,
    text: str,
    kind: Kind,
    now: float,
    sender: str | None = None,
    *,
    late: bool = False,
) -> Token:
    """Return what a device's token says; *sender* is whoever sends it.

    :param late: whether a token that has expired is good, too.
    :raises StatusError: UNAUTHENTICATED unless it is one of this deployment's; ABORTED for one that
        has expired, since the device is late and did nothing wrong; PERMISSION_DENIED for one that
        somebody else was given.
    """
    try:
        token = tokens.read(text, kind, now)
    except ExpiredTokenError as error:
        token = error.token
        if not late:
            check_sender(token, sender)
            raise StatusError(
                Code.ABORTED, f"this {_NAMES[kind]} has expired; check in again"
            ) from None
    check_sender(token, sender)
    return token


def read_session(
    tokens: Tokens, population: str, session_id: str, now: float, sender: str | None
) -> Token:
    """Return what a session's id says, expired or not.

    :raises StatusError: NOT_FOUND for what is no session of the population; PERMISSION_DENIED for
        somebody else's.
    """
    token = None
    try:
        token = read_token(tokens, session_id, Kind.SESSION, now, sender, late=True)
    except StatusError as error:
        if error.code is not Code.UNAUTHENTICATED:
            raise
    if token is None or token.scope != scope_of(population):
        raise StatusError(
            Code.NOT_FOUND, f"population {population!r} has no such session; check in"
        )
    return token


# Long-running operations: no list of them is kept. That of a device that waits for a task is its
# session's state, and that of a protocol's call is the record of the call.


def operation_name(token: str) -> str:
    """Return the name of an operation; devices take no other form."""
    return f"{_PREFIX}{token}"


def operation_token(name: str) -> str:
    """Return the token in an operation's name."""
    return name.removeprefix(_PREFIX)


def operation(name: str, metadata: Any, result: Any | StatusError | None) -> longrunning.Operation:
    """Return an operation as a message.

    :param metadata: must carry a polling interval if it is of a type that has one and the operation
        is not done: with none, the published client asks again without a pause. None: there is
        none.
    :param result: the response or an error; None: it is pending.
    """
    message = longrunning.Operation(name=name)
    if metadata is not None:
        message.metadata.Pack(metadata)
    if isinstance(result, StatusError):
        message.done = True
        message.error.CopyFrom(result.to_proto())
    elif result is not None:
        message.done = True
        message.response.Pack(result)
    return message
