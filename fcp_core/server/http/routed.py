"""Chooses what handles a request in a server with several members: here, or by passing it on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tornado.httputil import HTTPHeaders

from fcp_core.server.http.context import Context
from fcp_core.server.http.forward import ForwardHandler
from fcp_core.server.http.handler import Handler, MakeHandler
from fcp_core.server.http.pages import NothingHandler
from fcp_core.server.http.passing import HEADER, mark_of_call, verify
from fcp_core.server.http.request import Channel
from fcp_core.server.processes.placing import LARGE


def routed(
    context: Context,
    make: MakeHandler,
    *,
    passes: bool = True,
    linked: Callable[[str], object] | None = None,
) -> MakeHandler:
    """Return what makes the handler of a request: *make*, if the population is this server's.

    :param passes: whether calls are passed on; if not, they are answered that it moved.
    :param linked: returns what leads to an owner, given where that is called, if there is a link:
        *make* can do without its population then.
    """
    members = context.members
    assert members is not None  # there is nothing to route otherwise

    def choose(connection: Channel, method: str, uri: str, headers: HTTPHeaders) -> Handler:
        mark, begins = mark_of_call(method, uri.partition("?")[0])
        if mark is not None:
            owner = members.table.owner(mark, members.clock)
            there = "" if owner is None or linked is None else owner.url
            if there and linked is not None and _is_large(headers) and linked(there):
                return make(connection, method, uri, headers)
            if owner is None or owner.url or (owner.giving and begins):
                request = (connection, method, uri, headers)
                return ForwardHandler(context, mark, make, passes, begins, *request)
        return make(connection, method, uri, headers)

    return choose


def _is_large(headers: HTTPHeaders) -> bool:
    """Whether a body is large enough to be received here, rather than passed on; it may not say."""
    announced = headers.get("Content-Length", "")
    return not announced.isdecimal() or int(announced) >= LARGE


def from_members(context: Context, makers: Mapping[str, MakeHandler]) -> MakeHandler:
    """Return what makes the handlers of calls that other members passed on.

    :param makers: what makes those of devices' calls, by how what is asked for begins.
    """
    members = context.members
    assert members is not None  # only members listen for others
    routes = [(begins, routed(context, make, passes=False)) for begins, make in makers.items()]

    def choose(connection: Channel, method: str, uri: str, headers: HTTPHeaders) -> Handler:
        passed = verify(members.table.secrets, method, uri, headers.get(HEADER, ""))
        if passed is None:
            return NothingHandler(context, connection, method, uri, headers)
        make = next(make for begins, make in routes if uri.startswith(begins))
        handler = make(connection, method, uri, headers)
        handler.passed = passed
        return handler

    return choose
