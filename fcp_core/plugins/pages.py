"""The contract of pages: what a plugin answers below a path of its own, where the admin API is.

A server that serves the pages called ``dashboard`` passes every request for ``/dashboard/...`` to
them, in the process that decides, and answers what they return. It says of each whether it carries
the admin's token or certificate; who gets which page is for the pages to decide, since a browser
shows a cookie of theirs instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from fcp_core.plugins.config import Config
from fcp_core.plugins.offers import LoadedPlugin, Offer

#: The largest body that pages are sent, in bytes.
MAX_BODY = 1 << 20


class PageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    :param method: GET, HEAD or POST.
    :param path: what comes after ``/NAME``: ``""``, or it begins with a slash; escapes as sent.
    :param query: the values of each parameter.
    :param headers: names in lower case.
    :param secure: whether it came over TLS.
    :param local: whether it came to an address that only this machine has, such as 127.0.0.1.
    :param admin: whether it carries the admin's token, or the certificate of an admin.
    :param member: whether another member of the server sent it, and no person.
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = {}
    headers: Mapping[str, str] = {}
    body: bytes = b""
    secure: bool = False
    local: bool = False
    admin: bool = False
    member: bool = False


class PageAnswer(msgspec.Struct, frozen=True):
    """What a request is answered with; to one of HEAD no body is sent."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = {}


class Pages(Protocol):
    """The pages of one server; all of it runs on its event loop."""

    async def answer(self, request: PageRequest) -> PageAnswer:
        """Answer a request.

        :raises StatusError: to answer with that; any other exception is logged, and answered 500.
        """
        ...


@dataclass(frozen=True)
class Site:
    """What pages may know of their server.

    :param admin: the calls of ``fcp_core.admin.api``, an ``async`` method each, for all members of
        the server; arguments and answers are those of ``fcp_core.admin.messages``.
    :param config: the whole configuration, with the origin of each value.
    :param plugins: those that are in use.
    :param offers: returns what they offer, and what is in use of it.
    :param url: returns where devices reach the server, with a slash at the end.
    :param knows: returns whether a token is the admin's, in a time that tells nothing.
    :param key: returns 32 bytes that only this server knows, for one purpose: the same in each of
        its members, and others after the admin's token was changed.
    :param others: asks all other members of the server for a page of the same name, and returns the
        bodies of their answers; one that does not answer is left out.
    :param metrics: returns the series of some metrics by name, of each process of this member.
    """

    admin: Any
    config: Config
    plugins: Sequence[LoadedPlugin]
    offers: Callable[[], Sequence[Offer]]
    url: Callable[[], str]
    knows: Callable[[str], bool]
    key: Callable[[str], bytes]
    others: Callable[[str], Awaitable[Sequence[bytes]]]
    metrics: Callable[[Collection[str]], Awaitable[Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class PagesFactory:
    """Makes pages, once a server.

    :param name: the first part of their path, one word.
    :param summary: one line for listings.
    :param make: makes them; nothing may be opened or started in it.
    """

    name: str
    summary: str
    make: Callable[[Site], Pages]
