"""Names that cannot be guessed, from a source of random bytes that is passed in."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable


class TokenSource:
    """Makes session ids and secrets.

    :param random_bytes: returns that many bytes nobody can predict; a test may pass its own.
    """

    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._random_bytes = random_bytes

    def uuid(self) -> str:
        """Return a random UUID."""
        # What uuid.UUID(bytes=..., version=4) makes of them, at a third of the cost.
        data = bytearray(self._random_bytes(16))
        data[6] = data[6] & 0x0F | 0x40
        data[8] = data[8] & 0x3F | 0x80
        text = data.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def secret(self) -> str:
        """Return 256 random bits as hexadecimal digits, which every URL takes literally."""
        return self._random_bytes(32).hex()


def digest(token: str) -> str:
    """Return the form in which a token is kept: its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()
