"""What is in tokens: kinds; and ids, names and senders, which are a few bytes of fixed length."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from fcp_core.protocol.status import Code, StatusError

ID_BYTES: Final = 16
#: How many bytes of a scope tell the population.
MARK_BYTES: Final = 6
#: How many bytes of a sender's hash are in a token.
SENDER_BYTES: Final = 12
#: How long what a token says beyond that may be, such as the method of a call.
MAX_EXTRA: Final = 64


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
    :param sender: the hash of whom it was given to, see :func:`sender_digest`.
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


@lru_cache(maxsize=1024)
def principal_of(sender: str | None) -> str | None:
    """Return the principal of what :func:`sender_of` returned."""
    principal, found, _ = (sender or "").rpartition(_AND)
    return (principal or None) if found else sender


@lru_cache(maxsize=1024)
def sender_digest(sender: str | None) -> bytes:
    """Return the hash of a sender that stands in tokens: 12 bytes."""
    # The first byte keeps apart a sender without a name and none.
    text = b"\0" if sender is None else b"\1" + sender.encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).digest()[:SENDER_BYTES]


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


@lru_cache(maxsize=1024)
def uuid_bytes(text: str) -> bytes:
    """Return the 16 bytes of a UUID.

    :raises ValueError: if it is none.
    """
    return uuid.UUID(text).bytes


@lru_cache(maxsize=1024)
def uuid_text(data: bytes) -> str:
    """Return 16 bytes as a UUID is written; the inverse of :func:`uuid_bytes`."""
    return _text(data.hex())


def _text(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _random_uuid_text(data: bytes) -> str:
    """Return what ``uuid.UUID(bytes=data, version=4)`` writes, at a third of the cost."""
    marked = bytearray(data)
    marked[6] = marked[6] & 0x0F | 0x40
    marked[8] = marked[8] & 0x3F | 0x80
    return _text(marked.hex())


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
