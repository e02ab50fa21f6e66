"""Addresses that devices are told."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

from fcp_core.errors import UsageError

logger = logging.getLogger("fcp.server")


def checked_url(url: str, what: str = "external URL") -> str:
    """Return an address with a slash at the end.

    :param what: what the message calls it.
    :raises UsageError: if it cannot be one.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"the {what} {url!r} must be like https://fcp.example.org/ or "
            "http://localhost:8080/, without a query."
        )
    if parts.scheme == "http" and parts.hostname != "localhost":
        logger.warning(
            "devices refuse %s: the published client takes https:// and http://localhost: only", url
        )
    return url.rstrip("/") + "/"
