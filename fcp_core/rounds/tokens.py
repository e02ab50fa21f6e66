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
import secrets
import struct
import uuid
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.keys import Keyring, SigningKey

VERSION: Final = 1
ID_BYTES: Final = 16
MAX_EXTRA: Final = 64

#: How many genuine tokens are remembered at a time.
_REMEMBERED: Final = 8192
_SENDER_BYTES: Final = 12
_MAC_BYTES: Final = 16
_EXPIRES_BYTES: Final = 5
#: Version, key, kind, scope, subject, sender, expiry, and how long the extra part is.
#: How many bytes of a scope tell the population.
MARK_BYTES: Final = 6
_SCOPE_AT: Final = 3
_PARTS: Final = struct.Struct(f">BBB{ID_BYTES}s{ID_BYTES}s{_SENDER_BYTES}s{_EXPIRES_BYTES}sB")
_FIXED: Final = _PARTS.size
_MAX_CHARACTERS: Final = (_FIXED + MAX_EXTRA + _MAC_BYTES) * 4 // 3 + 4
#: What is signed begins with what it is signed for, so that one can never pass for the other.
_TOKEN_PURPOSE: Final = b"fcp token\0"
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


class Kind(Enum):
    """What a token lets its holder do. The numbers are in tokens that devices hold: add only."""

    SESSION = 1
    OPERATION = 2
    AUTHORIZATION = 3
    CLIENT = 4
    UPLOAD = 5


class Token(NamedTuple):
    """What a token says, once its signature was found right.

    :param key: the id of the key that signed it.
    :param scope: 16 bytes, see :func:`scope_of` and :func:`uuid_bytes`.
    :param subject: 16 bytes.
    :param sender: the hash of whom it was given to, see :func:`check_sender`.
    :param expires: in whole seconds.
    :param extra: at most 64 bytes.
    """

    version: int
    key: int
    kind: Kind
    scope: bytes
    subject: bytes
    sender: bytes
    expires: int
    extra: bytes


class ExpiredTokenError(StatusError):
    """A token is genuine and of the right kind, but too old: its holder is late, not a forger.

    :param token: what it says.
    """

    def __init__(self, token: Token) -> None:
        super().__init__(Code.UNAUTHENTICATED, f"the {token.kind.name.lower()} token has expired")
        self.token = token

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error be pickled by another process."""
        return (ExpiredTokenError, (self.token,))


class Tokens:
    """Makes and reads the tokens of one deployment.

    :param keyring: the valid keys.
    :param deployment: the deployment's id, part of every signature.
    """

    def __init__(self, keyring: Keyring, deployment: bytes) -> None:
        self._deployment = deployment
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


#: Stands between the principal and the certificate of a sender.
_AND = "\x1f"


def sender_of(principal: str | None, certificate: bytes | None) -> str | None:
    """Return what a session is bound to: a principal, and the client certificate that was shown.

    :param principal: what the authentication hook returned.
    :param certificate: DER; None: there was none.
    """
    if certificate is None:
        return principal
    return f"{principal or ''}{_AND}{hashlib.sha256(certificate).hexdigest()}"


def principal_of(sender: str | None) -> str | None:
    """Return the principal of what :func:`sender_of` returned."""
    principal, found, _ = (sender or "").rpartition(_AND)
    return (principal or None) if found else sender


@lru_cache(maxsize=1024)
def sender_digest(sender: str | None) -> bytes:
    """Return the hash of a sender that stands in tokens: 12 bytes."""
    # The first byte keeps apart a sender without a name and none.
    text = b"\0" if sender is None else b"\1" + sender.encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).digest()[:_SENDER_BYTES]


@lru_cache(maxsize=1024)
def scope_of(name: str) -> bytes:
    """Return the scope of something that has a name and no id, such as a population: 16 bytes."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:ID_BYTES]


def mark_of(population: str) -> bytes:
    """Return what the scopes of all tokens of a population begin with: 6 bytes.

    So do the ids of its tasks, and the addresses of what devices download. A member of a server
    that is not the population's owner thereby knows whose call it is, with nothing to look up.
    """
    return scope_of(population)[:MARK_BYTES]


def mark_in(token: str) -> bytes | None:
    """Return the mark in the text of a token, whose signature is not checked; None: it is none."""
    data = _decode(token)
    if data is None or len(data) < _FIXED:
        return None
    return data[_SCOPE_AT : _SCOPE_AT + MARK_BYTES]


@lru_cache(maxsize=1024)
def uuid_bytes(text: str) -> bytes:
    """Return the 16 bytes of a UUID.

    :raises ValueError: if it is none.
    """
    return uuid.UUID(text).bytes


def uuid_text(data: bytes) -> str:
    """Return 16 bytes as a UUID is written; the inverse of :func:`uuid_bytes`."""
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _random_uuid_text(data: bytes) -> str:
    """Return what ``uuid.UUID(bytes=data, version=4)`` writes, at a third of the cost."""
    marked = bytearray(data)
    marked[6] = marked[6] & 0x0F | 0x40
    marked[8] = marked[8] & 0x3F | 0x80
    return uuid_text(bytes(marked))


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


class TokenSource:
    """Makes session ids and secrets.

    :param random_bytes: returns that many bytes nobody can predict; a test may pass its own.
    :ivar bytes: the same.
    """

    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.bytes = random_bytes

    def uuid(self, mark: bytes = b"") -> str:
        """Return a random UUID.

        :param mark: what it begins with: at most 6 bytes.
        """
        return _random_uuid_text(mark + self.bytes(16)[len(mark) :])

    def secret(self) -> str:
        """Return 256 random bits as hexadecimal digits, which every URL takes literally."""
        return self.bytes(32).hex()
