"""Who may use the admin API: whoever has the token, or a certificate of a user."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcp_core.errors import UsageError, reason
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
    if path is not None:
        try:
            found = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"the admin token file {os.fspath(path)} cannot be read: {reason(error)}."
            ) from None
        if token not in (None, found):
            raise UsageError(
                f"there are two admin tokens: from {origin} and from "
                f"{config.origin('admin', 'token_file')}; keep one."
            )
        token = found
    if token is None:
        return None
    if not token.isascii() or not token.isprintable() or " " in token or len(token) < MIN_LENGTH:
        raise UsageError(
            f"the admin token (from {origin}) must be at least {MIN_LENGTH} printable ASCII "
            "characters without a space; 'openssl rand -hex 32' makes one."
        )
    return str(token)


class AdminCheck:
    """Lets in who has the token, compared in a time that tells nothing, or a right certificate.

    :param token: only its hash is kept; None: no token lets anybody in.
    :param names: the common names of the client certificates that do.
    """

    def __init__(self, token: str | None, names: Collection[str] = ()) -> None:
        self._hash = None if token is None else _hash(token)
        self._names = frozenset(names)
        #: What keys are made of; without a token each process has its own.
        self._secret = self._hash or os.urandom(32)

    @classmethod
    def from_config(cls, config: Config) -> AdminCheck | None:
        """Make the check that ``[fcp:admin]`` describes; None if it lets nobody in.

        :raises UsageError: if the token does not do, or certificates are named but not asked for.
        """
        token, names = read_token(config), config.section("admin")["certificate_names"]
        if names and config.get("client_ca") is None:
            raise UsageError(
                f"certificate_names (from {config.origin('admin', 'certificate_names')}) needs "
                "client_ca: without it no client shows a certificate."
            )
        return cls(token, names) if token is not None or names else None

    def knows(self, token: str) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(_hash(token.strip()), self._hash or b"")

    def key(self, purpose: str) -> bytes:
        """Return a key of 32 bytes that follows from the token, for one purpose."""
        return hmac.digest(self._secret, purpose.encode(), "sha256")

    def check(self, authorization: str, certificate: Mapping[str, Any] | None) -> None:
        """Check who sends a request.

        :param authorization: the value of the ``Authorization`` header.
        :param certificate: the client's, verified, as ``ssl`` gives it.
        :raises StatusError: UNAUTHENTICATED if neither is right.
        """
        scheme, _, token = authorization.partition(" ")
        if self.knows(token) and scheme.lower() == "bearer":
            return
        subject = certificate.get("subject", ()) if certificate else ()
        pairs = [pair for part in subject for pair in part]
        if any(key == "commonName" and value in self._names for key, value in pairs):
            return
        what = (
            "this is not the admin token of this server"
            if token and scheme.lower() == "bearer" and self._hash
            else "the admin API needs the header 'Authorization: Bearer TOKEN' with its token"
        )
        raise StatusError(
            Code.UNAUTHENTICATED,
            what + (", or a client certificate of one of its users" if self._names else ""),
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
