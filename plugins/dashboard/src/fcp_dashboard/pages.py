"""The pages of one server: who asks is checked, then the page of the path answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote

from fcp_core.admin.messages import Cancellation
from fcp_core.plugins.pages import PageAnswer, PageRequest, Site
from fcp_core.protocol.status import Code, StatusError
from fcp_dashboard import facts
from fcp_dashboard.access import Access, Visitor, check_origin
from fcp_dashboard.content import Content
from fcp_dashboard.recorder import Recorder
from fcp_dashboard.render import answer, page, redirect, static
from fcp_dashboard.settings import Settings
from fcp_dashboard.snapshot import Snapshots
from fcp_dashboard.views.overview import ROWS

logger = logging.getLogger("fcp_dashboard")

_STATIC = {
    "/style.css": "text/css; charset=utf-8",
    "/script.js": "text/javascript; charset=utf-8",
}
_JSON = "application/json"
#: How long somebody waits who gave a wrong token, in seconds.
_WRONG = 0.3


class Dashboard:
    """Answers requests for the dashboard."""

    def __init__(self, site: Site, settings: Settings, recorder: Recorder) -> None:
        self._site = site
        self._access = Access(site, settings)
        self._snapshots = Snapshots(site, recorder)
        self._content = Content(site, self._snapshots, Snapshots(site, recorder, ROWS))

    async def answer(self, request: PageRequest) -> PageAnswer:
        """Answer a request.

        :raises StatusError: what a program is answered; a person gets a page.
        """
        if request.path == "":
            return redirect("dashboard/")
        if request.member:
            return await self._for_members(request)
        self._access.check_host(request)
        if request.path in _STATIC:
            data = static(request.path[1:])
            return answer(request, data, _STATIC[request.path], kept=True)
        if request.path == "/login":
            return await self._login(request)
        visitor = self._access.visitor(request)
        if request.path == "/link":
            return self._link(request)
        if visitor is None:
            return self._ask_for_token(request)
        try:
            return await self._view(request, visitor)
        except StatusError as error:
            return self._content.said(request, visitor, error)

    # Logging in and out.

    async def _login(self, request: PageRequest) -> PageAnswer:
        if request.method != "POST":
            link = _first(request.query).get("link")
            if link is not None:
                return page(request, "confirm.html", link=link)
            where = _first(request.query).get("next", "")
            return page(request, "login.html", next=where, failed="")
        check_origin(request)
        form = form_of(request)
        role = self._access.role_of(form.get("token", ""))
        link = form.get("link", "")
        if link and await self._take_link(link):
            role = "admin"
        if role is None:
            await asyncio.sleep(_WRONG)
            failed = "This link was used, or is too old." if link else "This is not the token."
            return page(request, "login.html", status=403, next=form.get("next", ""), failed=failed)
        where = form.get("next", "")
        return redirect(
            f"./{where}" if _is_ours(where) else "./",
            {"Set-Cookie": self._access.cookie(request, role)},
        )

    async def _take_link(self, word: str) -> bool:
        """Take a link of this member, or of another one behind the same address."""
        if self._access.take_link(word):
            return True
        found = await self._site.others(f"/dashboard/claim?link={quote(word, safe='')}")
        return b"yes" in found

    def _link(self, request: PageRequest) -> PageAnswer:
        """Answer a program that has the admin's token with a link for a browser."""
        if request.method != "POST" or not request.admin:
            raise StatusError(Code.UNAUTHENTICATED, "this needs the admin's token, and POST")
        link = f"dashboard/login?link={self._access.make_link()}"
        return PageAnswer(facts.as_json({"path": link}), 200, {"Content-Type": _JSON})

    def _ask_for_token(self, request: PageRequest) -> PageAnswer:
        if "text/html" not in request.headers.get("accept", "text/html"):
            raise StatusError(Code.UNAUTHENTICATED, "this needs a token")
        up = "../" * (request.path.count("/") - 1)
        where = request.path[1:] if request.method == "GET" else ""
        return redirect(f"{up}login{'?next=' + quote(where) if where else ''}")

    # What members ask one another.

    async def _for_members(self, request: PageRequest) -> PageAnswer:
        if request.path == "/facts":
            return PageAnswer(facts.encode(await self._snapshots.here()))
        if request.path == "/claim":
            good = self._access.take_link(_first(request.query).get("link", ""))
            return PageAnswer(b"yes" if good else b"no")
        raise StatusError(Code.NOT_FOUND, "members do not ask for that")

    # The pages.

    async def _view(self, request: PageRequest, visitor: Visitor) -> PageAnswer:
        if request.method == "POST":
            return await self._act(request, visitor)
        return await self._content.get(request, visitor)

    async def _act(self, request: PageRequest, visitor: Visitor) -> PageAnswer:
        """Do what a form asks for."""
        form = form_of(request)
        self._access.check_form(request, visitor, form)
        parts = request.path.strip("/").split("/")
        if parts == ["logout"]:
            return redirect("login", {"Set-Cookie": self._access.no_cookie(request)})
        if parts == ["submit"]:
            _check_may(visitor, "submit")
            return await self._content.submit(request, visitor, form.get("text", ""))
        if len(parts) == 3 and parts[0] == "tasks" and parts[2] == "cancel":
            _check_may(visitor, "cancel")
            task_id = unquote(parts[1])
            reason = Cancellation("it was cancelled from the dashboard")
            await self._site.admin.cancel(task_id, reason)
            logger.info("task %s was cancelled from the dashboard", task_id)
            return redirect(f"../{quote(task_id, safe='')}")
        raise StatusError(Code.NOT_FOUND, "there is no such form")


def form_of(request: PageRequest) -> dict[str, str]:
    """Return the fields of a form.

    :raises StatusError: INVALID_ARGUMENT if it is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind != "application/x-www-form-urlencoded":
            raise ValueError("it is no form")
        text = request.body.decode("utf-8")
        return _first(parse_qs(text, keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"the form: {error}") from None


def _first(values: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: given[0] for name, given in values.items()}


def _is_ours(path: str) -> bool:
    """Whether a path can only lead to a page of ours."""
    return not set(path) & set(":\\?#%") and ".." not in path and not path.startswith("/")


def _check_may(visitor: Visitor, action: str) -> None:
    """Refuse what a visitor may not do.

    :raises StatusError: PERMISSION_DENIED.
    """
    if action not in visitor.actions:
        raise StatusError(
            Code.PERMISSION_DENIED,
            f"you may not {action}; [fcp:dashboard] actions says what the admin may do from a page",
        )
