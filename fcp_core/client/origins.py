"""The servers that a client connects to, by scheme, host and port."""

from __future__ import annotations

import functools
import ipaddress
import urllib.parse
from dataclasses import dataclass

_SAFE = "%/?:@!$&'()*+,;=~[]"


@dataclass(frozen=True)
class Origin:
    """A host as it is connected to.

    :param name: as it stands in the header, with the port if that is not the scheme's.
    """

    secure: bool
    host: str
    port: int
    name: str


def split_url(url: str) -> tuple[Origin, str]:
    """Return where a URL leads and what is asked for there.

    :raises ValueError: if it is no absolute HTTP or HTTPS address, or names a user.
    """
    scheme, separator, rest = url.partition("://")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    if not separator:
        raise ValueError(f"{url!r} is not an HTTP address")
    target = rest[end:].partition("#")[0]
    return _origin(scheme.lower(), rest[:end]), urllib.parse.quote(
        target if target.startswith("/") else "/" + target, safe=_SAFE
    )


@functools.lru_cache(maxsize=1024)
def _origin(scheme: str, authority: str) -> Origin:
    parts = urllib.parse.urlsplit(f"{scheme}://{authority}")
    host, port = parts.hostname or "", parts.port
    usual = {"http": 80, "https": 443}.get(scheme)
    # What stands before an "@" looks like a host and is none.
    if usual is None or "@" in authority or not host:
        raise ValueError(f"{scheme}://{authority} is not an HTTP address of a host")
    if ":" in host:
        ipaddress.IPv6Address(host)  # before Python 3.11 urlsplit takes anything in brackets
    if not host.isascii():
        host = host.encode("idna").decode()
    if urllib.parse.quote(host, safe=":") != host:
        raise ValueError(f"{host!r} is not a host")
    shown = f"[{host}]" if ":" in host else host
    if port not in (None, usual):
        shown += f":{port}"
    return Origin(scheme == "https", host, usual if port is None else port, shown)
