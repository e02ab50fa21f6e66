"""Names that cannot be guessed, from a source of random bytes that is passed in."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable


class TokenSource:
    """Makes session ids and secrets.

    :param random_bytes: returns that many bytes nobody can predict; a test may pass its own.
    """

    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._random_bytes = random_bytes

    def uuid(self) -> str:
        """Return a random UUID."""
        return str(uuid.UUID(bytes=self._random_bytes(16), version=4))

    def secret(self) -> str:
        """Return 256 random bits as hexadecimal digits, which every URL takes literally."""
        return self._random_bytes(32).hex()


def digest(token: str) -> str:
    """Return the form in which a token is kept: its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()
