"""Addresses that devices are told."""

from __future__ import annotations

import logging

from fcp_core.errors import UsageError
from fcp_core.protocol.urls import split_address

logger = logging.getLogger("fcp.server")


def checked_url(url: str, what: str = "external URL") -> str:
    """Return an address with a slash at the end.

    :param what: what the message calls it.
    :raises UsageError: if it cannot be one.
    """
    try:
        parts = split_address(url)
    except ValueError as error:
        raise UsageError(
            f"the {what} {url!r} must be like https://fcp.example.org/ or "
            f"http://localhost:8080/: {error}."
        ) from None
    if parts.scheme == "http" and parts.hostname != "localhost":
        logger.warning(
            "devices refuse %s: the published client takes https:// and http://localhost: only", url
        )
    return url.rstrip("/") + "/"
