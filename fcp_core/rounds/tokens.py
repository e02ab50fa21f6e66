"""Tokens that say what they mean: capabilities that any member of a deployment can check.

A token is a string of ``A-Z a-z 0-9 - _``, the unpadded base64url form of:

| bytes | what |
|---|---|
| 1 | version |
| 1 | id of the key that signed it |
| 1 | kind |
| 16 | scope: a task's id, or a hash of a population's name |
| 16 | subject: an assignment's id, or a session's nonce |
| 12 | hash of the sender, as far as authentication knows one |
| 5 | when it expires, in seconds |
| 1 + n | extra: at most 64 bytes, such as the slot of an upload |
| 16 | HMAC-SHA-256 of the deployment's id and all of the above, truncated |

It is signed, not encrypted: it holds nothing that its holder may not know. The same arguments make
the same token, so that a call which is sent again gets the same answer.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.keys import Keyring, SigningKey
from fcp_core.rounds.token_parts import (
    ID_BYTES,
    MARK_BYTES,
    MAX_EXTRA,
    SENDER_BYTES,
    ExpiredTokenError,
    Kind,
    Token,
    scope_of,
    sender_digest,
    uuid_bytes,
)

VERSION: Final = 1

#: How many genuine tokens are remembered at a time.
_REMEMBERED: Final = 8192
_MAC_BYTES: Final = 16
_EXPIRES_BYTES: Final = 5
#: Version, key, kind, scope, subject, sender, expiry, and how long the extra part is.
_SCOPE_AT: Final = 3
_PARTS: Final = struct.Struct(f">BBB{ID_BYTES}s{ID_BYTES}s{SENDER_BYTES}s{_EXPIRES_BYTES}sB")
_FIXED: Final = _PARTS.size
_MAX_CHARACTERS: Final = (_FIXED + MAX_EXTRA + _MAC_BYTES) * 4 // 3 + 4
#: What is signed begins with what it is signed for, so that one can never pass for the other.
_TOKEN_PURPOSE: Final = b"fcp token\0"
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")

#: Seconds for which what a device holds outlives its purpose: one that comes too late is still
#: known, and answered accordingly.
RETENTION = 3600.0

_PREFIX = "operations/"


class Tokens:
    """Makes and reads the tokens of one deployment.

    :param keyring: the valid keys.
    :param deployment: the deployment's id, part of every signature.
    """

    def __init__(self, keyring: Keyring, deployment: bytes) -> None:
        self._purpose = _TOKEN_PURPOSE + deployment
        self.use(keyring)

    @property
    def current_key(self) -> int:
        """The id of the key that signs."""
        return self._current.id

    def use(self, keyring: Keyring) -> None:
        """Use other keys, after a rotation."""
        self._current = keyring.current
        self._keys = keyring.keys
        #: What some genuine tokens say, by their text: a cache, which may be lost at any time. The
        #: look-up tells nobody how much of a guess is right: it goes by a hash of the whole.
        self._genuine: dict[str, bytes] = {}
        #: The other way: what was made of which parts.
        self._made: dict[tuple[object, ...], str] = {}

    def make(
        self,
        kind: Kind,
        scope: bytes,
        subject: bytes,
        sender: str | None,
        expires: float,
        extra: bytes = b"",
        *,
        key: int | None = None,
    ) -> str:
        """Return a token.

        :param scope: 16 bytes.
        :param subject: 16 bytes.
        :param sender: whom it is given to; None: nobody that authentication knows.
        :param expires: when it does, in seconds; fractions are rounded up.
        :param extra: at most 64 bytes.
        :param key: sign with the key of this id if it is still valid. A token that follows from
            another is then the same one after a rotation, too.
        :raises ValueError: if a part has a wrong length.
        """
        parts = (kind, scope, subject, sender, expires, extra, key)
        known = self._made.get(parts)
        if known is not None:
            return known
        if len(scope) != ID_BYTES or len(subject) != ID_BYTES or len(extra) > MAX_EXTRA:
            raise ValueError("scope and subject have 16 bytes each, extra has at most 64")
        signer = self._signer(key)
        until = (-int(-expires // 1)).to_bytes(_EXPIRES_BYTES, "big")
        digest = sender_digest(sender)
        fixed = _PARTS.pack(
            VERSION, signer.id, kind.value, scope, subject, digest, until, len(extra)
        )
        body = fixed + extra
        text = _encode(body + self._mac(signer, body))
        self._remember(text, body)
        self._made[parts] = text
        return text

    def read(self, text: str, kind: Kind, now: float, scope: bytes | None = None) -> Token:
        """Return what a token says. Who sends it is for :func:`check_sender`.

        :param kind: what it must be.
        :param scope: what it must be for, if that matters.
        :raises ExpiredTokenError: if only its time is over.
        :raises StatusError: UNAUTHENTICATED if it is anything else than a valid token of this
            deployment, kind and scope. The message never quotes it.
        """
        body = self._genuine.get(text)
        if body is None:
            body = self._verify(text, kind)
            self._remember(text, body)
        if body[2] != kind.value:
            raise _refusal(kind, "is a token of another kind")
        token = _parse(body, kind)
        if scope is not None and not hmac.compare_digest(token.scope, scope):
            raise _refusal(kind, "is for something else")
        if now >= token.expires:
            raise ExpiredTokenError(token)
        return token

    def _verify(self, text: str, kind: Kind) -> bytes:
        """Return what a token's signature is right for."""
        data = _decode(text)
        if data is None or len(data) < _FIXED + _MAC_BYTES:
            raise _refusal(kind, "is not one of ours")
        body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if body[0] != VERSION:
            raise _refusal(kind, "has a version that this server does not know")
        signer = self._keys.get(body[1])
        if signer is None:
            raise _refusal(kind, "is signed with a key that is not valid, or no longer")
        if not hmac.compare_digest(self._mac(signer, body), mac):
            raise _refusal(kind, "was not made by this server")
        return body

    def _remember(self, text: str, body: bytes) -> None:
        """Spare a token that comes soon its signature's check."""
        if len(self._genuine) >= _REMEMBERED:
            self._genuine.clear()
            self._made.clear()
        self._genuine[text] = body

    def _signer(self, key: int | None) -> SigningKey:
        chosen = None if key is None else self._keys.get(key)
        return chosen or self._current

    def _mac(self, signer: SigningKey, body: bytes) -> bytes:
        return hmac.digest(signer.secret, self._purpose + body, "sha256")[:_MAC_BYTES]


def check_sender(token: Token, sender: str | None) -> None:
    """Check, in constant time, that a token comes from whom it was given to.

    :raises StatusError: PERMISSION_DENIED if not.
    """
    if not hmac.compare_digest(token.sender, sender_digest(sender)):
        raise StatusError(
            Code.PERMISSION_DENIED,
            f"the {token.kind.name.lower()} token was given to another sender",
        )


def mark_in(token: str) -> bytes | None:
    """Return the mark in the text of a token, whose signature is not checked; None: it is none."""
    data = _decode(token)
    if data is None or len(data) < _FIXED:
        return None
    return data[_SCOPE_AT : _SCOPE_AT + MARK_BYTES]


def _encode(data: bytes) -> str:
    text = binascii.b2a_base64(data, newline=False).translate(_TO_URL)
    return text.rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes | None:
    """Return the bytes of a token's text; None unless it is exactly what ``_encode`` makes."""
    if len(text) > _MAX_CHARACTERS or not text.isascii():
        return None
    try:
        padded = text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4)
        data = binascii.a2b_base64(padded)
    except binascii.Error:
        return None
    # Base64 has several texts for some bytes; a token has one.
    return data if _encode(data) == text else None


def _parse(body: bytes, kind: Kind) -> Token:
    version, key, _, scope, subject, sender, until, _ = _PARTS.unpack_from(body)
    expires = int.from_bytes(until, "big")
    return Token(version, key, kind, scope, subject, sender, expires, body[_FIXED:])


def _refusal(kind: Kind, problem: str) -> StatusError:
    return StatusError(Code.UNAUTHENTICATED, f"the {kind.name.lower()} token {problem}")


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
