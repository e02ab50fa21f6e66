"""Addresses of servers as people write them."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?")


def without_brackets(host: str) -> str:
    """Return a host as sockets take it, without the brackets that an IPv6 address has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def split_address(url: str) -> SplitResult:
    """Return the parts of an ``http://`` or ``https://`` address, which has no query.

    :raises ValueError: if it is none; the message says why.
    """
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("it has blanks or other characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("the brackets around its IPv6 address do not match") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("it does not begin with https:// or http://")
    if "@" in parts.netloc:
        raise ValueError("it names a user")
    if not parts.hostname:
        raise ValueError("it names no host")
    if ":" in parts.hostname:
        ipaddress.IPv6Address(parts.hostname)
    elif not _NAME.fullmatch(parts.hostname):
        raise ValueError(f"{parts.hostname!r} is no host")
    # Asking for the port checks it; a colon without one is left to the scheme.
    if parts.port == 0:
        raise ValueError("its port is 0")
    if parts.query or parts.fragment:
        raise ValueError("it has a query")
    return parts
