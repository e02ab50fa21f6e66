"""Where a session's calls go: which addresses are allowed, and what a ``ForwardingInfo`` means."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcp_core.client.origins import split_url
from fcp_core.protocol.status import Code, StatusError

# The published client knows this machine as localhost only; its addresses are as safe.
_HERE = r"http://(localhost|127\.0\.0\.1|\[::1\])"
_ENTRY_URI = re.compile(rf"https://.+|{_HERE}([:/].*)?", re.IGNORECASE | re.DOTALL)
_URI = re.compile(rf"https://.+|{_HERE}:.+", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Endpoint:
    """Where a call goes and which headers it carries: a ``ForwardingInfo``, resolved."""

    base: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def url(self, path: str, query: str = "?%24alt=proto") -> str:
        """Return the address of *path*, joined with exactly one slash."""
        return self.base.rstrip("/") + "/" + path.lstrip("/") + query


def path_variable(value: str, *, slashes: bool = False) -> str:
    """Return *value* as it stands in a path.

    :param slashes: for variables of several segments, whose slashes stay.
    :raises StatusError: INVALID_ARGUMENT if it is not ASCII.
    """
    if not value.isascii():
        raise StatusError(
            Code.INVALID_ARGUMENT, f"{value!r} cannot stand in an address: only ASCII can"
        )
    return urllib.parse.quote(value, safe="-_.~/" if slashes else "-_.~")


def check_uri(uri: str, *, entry_point: bool = False) -> None:
    """Refuse an address that is neither HTTPS nor this machine.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if not (_ENTRY_URI if entry_point else _URI).fullmatch(uri):
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"{uri!r} is not an allowed address: it must begin with https:// or http://localhost:",
        )
    if entry_point:
        try:
            split_url(uri)
        except ValueError as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"{uri!r} is not an address: {error}"
            ) from None


class Router:
    """Resolves the ``ForwardingInfo`` messages of one session.

    A prefix that begins with a slash is relative to the host of the last absolute one among those
    that the session remembers, which at first is the entry point.

    :param headers: those of every protocol request.
    :param any_address: whether plain HTTP to other machines is allowed, as in a load test.
    """

    def __init__(
        self,
        entry_point: str,
        headers: Mapping[str, str] | None = None,
        *,
        any_address: bool = False,
    ) -> None:
        self._headers = headers or {}
        self._any_address = any_address
        self.entry = Endpoint(entry_point, self._headers)
        self._host = _host(entry_point)

    def check(self, uri: str) -> None:
        """Refuse an address that this session may not use.

        :raises StatusError: INVALID_ARGUMENT.
        """
        if not self._any_address:
            check_uri(uri)

    def resolve(self, info: Any, what: str, *, remember: bool = False) -> Endpoint:
        """Return where calls governed by *info* go.

        :param what: the field's name, for messages.
        :param remember: whether later relative prefixes build on this one.
        :raises StatusError: INVALID_ARGUMENT if the prefix is empty or not allowed.
        """
        prefix = info.target_uri_prefix
        if not prefix:
            raise StatusError(Code.INVALID_ARGUMENT, f"the server sent no {what}")
        if prefix.startswith("/"):
            prefix = self._host + prefix
        self.check(prefix)
        if remember:
            self._host = _host(prefix)
        return Endpoint(prefix, {**info.extra_request_headers, **self._headers})


def _host(uri: str) -> str:
    return uri[:end] if (end := uri.find("/", 8)) >= 0 else uri
