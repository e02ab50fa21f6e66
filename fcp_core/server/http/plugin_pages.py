"""The handler of the pages that plugins bring: hands a request to them and sends their answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tornado.httputil import HTTPHeaders

from fcp_core.plugins.pages import MAX_BODY, PageRequest
from fcp_core.protocol.status import StatusError
from fcp_core.server.http import refusals
from fcp_core.server.http.handler import Handler

if TYPE_CHECKING:
    from fcp_core.server.http.admin_auth import AdminCheck
    from fcp_core.server.http.context import Context
    from fcp_core.server.http.request import Channel
    from fcp_core.server.services.pages import PageServer


class PagesHandler(Handler):
    """One request for a page.

    :param name: the pages', the first part of the path.
    """

    label = "pages"
    throttled = True

    def __init__(
        self,
        context: Context,
        pages: PageServer,
        check: AdminCheck,
        name: str,
        connection: Channel,
        method: str,
        uri: str,
        headers: HTTPHeaders,
    ) -> None:
        super().__init__(context, connection, method, uri, headers)
        self._pages = pages
        self._check = check
        self._name = name

    @property
    def subject(self) -> str:
        """Whose pages they are."""
        return self._name

    def allowed(self) -> Sequence[str]:
        """Return the methods that pages take."""
        return ("GET", "HEAD", "POST")

    def describe(self, error: StatusError) -> tuple[bytes, dict[str, str]]:
        """Return an error as a line of text."""
        _, headers = super().describe(error)
        headers["Content-Type"] = "text/plain; charset=utf-8"
        headers["X-Content-Type-Options"] = "nosniff"
        return f"{error.message}\n".encode(), headers

    def admit(self) -> None:
        """Make room for the body of a form."""
        super().admit()
        size = min(MAX_BODY, self.context.limits.max_body)
        limits = replace(self.context.limits, max_body=size, max_decompressed=size)
        self.open_body(limits, self.context.calls, in_file=True)

    async def serve(self) -> None:
        """Have the pages answer."""
        assert self.body is not None  # made by admit, which did not refuse
        try:
            body = bytes(await self.body.finish())
        finally:
            self.body.close()
        by_member = self.passed is not None and self.passed.by_member
        if self.passed is not None and by_member:
            self.passed.check(body)
        answer = await self._pages.answer(
            self._name,
            PageRequest(
                method=self.method,
                path=self.path[len(self._name) + 1 :],
                query=refusals.parameters(self),
                headers={name.lower(): value for name, value in self.headers.get_all()},
                body=body,
                secure=self.connection.secure,
                local=self._is_local(),
                admin=self._is_admin(),
                member=by_member,
            ),
        )
        self.answer(answer.body, answer.status, answer.headers)

    def _is_admin(self) -> bool:
        shown: Any = refusals.certificate(self, binary=False)
        try:
            self._check.check(self.headers.get("Authorization", ""), shown)
        except StatusError:
            return False
        return True

    def _is_local(self) -> bool:
        try:
            address = cast(Any, self.http.stream).socket.getsockname()[0]
            return ipaddress.ip_address(address).is_loopback
        except (OSError, ValueError, AttributeError):
            return False


def name_of(path: str, names: Sequence[str]) -> str | None:
    """Return whose pages a path is for, None if it is for none."""
    first = path[1:].partition("/")[0]
    return first if first in names else None
