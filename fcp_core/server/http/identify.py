"""Who sends a request."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fcp_core.rounds.token_parts import sender_of
from fcp_core.server.http import refusals

if TYPE_CHECKING:
    from fcp_core.server.http.handler import Handler

#: Where devices send their API key.
KEY_HEADER = "x-goog-api-key"


def identify(handler: Handler) -> str | None:
    """Return who sends a request.

    :raises StatusError: if a plugin refuses, or a key is used too often.
    """
    context = handler.context
    headers = {name.lower(): value for name, value in handler.headers.items()}
    principal = None
    if context.authenticate is not None:
        certificate: Any = refusals.certificate(handler, binary=False)
        principal = context.authenticate(
            method=handler.method,
            path=handler.path,
            headers=headers,
            peer=handler.address,
            certificate=certificate,
        )
    # A certificate is as good a name as a principal: what belongs to one is not for another.
    shown: Any = refusals.certificate(handler, binary=True)
    sender = sender_of(principal, shown)
    if context.keys.active:
        # A key that nobody knows has been refused; one that nobody checks counts as it is sent.
        context.keys.take(principal or sender or _digest(headers.get(KEY_HEADER, "")))
    return sender


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()
