"""Who may use the admin API: whoever has the token."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config

#: A token that is shorter can be guessed.
MIN_LENGTH = 16


def read_token(config: Config) -> str | None:
    """Return the configured token; None if there is none.

    :raises UsageError: if it is configured twice, its file cannot be read, or it is no token.
    """
    options = config.section("admin")
    token, path = options["token"], options["token_file"]
    origin = config.origin("admin", "token" if token is not None else "token_file")
    if token is not None and path is not None:
        raise UsageError(
            f"there are two admin tokens: from {origin} and from "
            f"{config.origin('admin', 'token_file')}; keep one."
        )
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the admin token file {os.fspath(path)}: {error}.") from None
    if token is None:
        return None
    if not token.isascii() or not token.isprintable() or " " in token or len(token) < MIN_LENGTH:
        raise UsageError(
            f"the admin token (from {origin}) must be at least {MIN_LENGTH} printable ASCII "
            "characters without a space; 'openssl rand -hex 32' makes one."
        )
    return str(token)


class TokenCheck:
    """Compares tokens with the right one, in a time that tells nothing; keeps a hash only."""

    def __init__(self, token: str) -> None:
        self._hash = _hash(token)

    def check(self, authorization: str) -> None:
        """Check the value of an ``Authorization`` header.

        :raises StatusError: UNAUTHENTICATED if it has not the right token.
        """
        scheme, _, token = authorization.partition(" ")
        right = hmac.compare_digest(_hash(token.strip()), self._hash)
        if scheme.lower() != "bearer" or not right:
            raise StatusError(
                Code.UNAUTHENTICATED,
                "the admin API needs the header 'Authorization: Bearer TOKEN' with its token",
            )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
