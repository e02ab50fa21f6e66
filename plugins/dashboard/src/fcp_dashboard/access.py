"""Who may see the pages: a token is exchanged for a signed cookie, and forms carry a second one."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, urlsplit

from tornado.web import create_signed_value, decode_signed_value

from fcp_core.plugins.pages import PageRequest, Site
from fcp_core.protocol.status import Code, StatusError
from fcp_dashboard.settings import Settings

COOKIE = "fcp_dashboard"
#: How long a link to log in is good, in seconds, and how many there may be at a time.
LINK_SECONDS, LINKS = 300.0, 100
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Visitor:
    """Somebody who may see the pages.

    :param form_token: what a form of theirs must carry.
    :param actions: what they may do.
    """

    role: str
    form_token: str
    actions: tuple[str, ...] = ()


class Access:
    """Lets visitors in.

    :param clock: tells the time in seconds.
    """

    def __init__(
        self, site: Site, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._site = site
        self._settings = settings
        self._clock = clock
        self._cookie_key = site.key("fcp_dashboard cookie").hex()
        self._form_key = site.key("fcp_dashboard form")
        #: The links that are good, and until when.
        self._links: dict[str, float] = {}

    def check_host(self, request: PageRequest) -> None:
        """Refuse a name that leads here by somebody else's DNS.

        :raises StatusError: PERMISSION_DENIED if this machine is asked by a name it does not have.
        """
        if not request.local:
            return
        name = _split(f"//{request.headers.get('host', '')}").hostname or ""
        own = urlsplit(self._site.url()).hostname
        if name not in _LOCAL and name != own and name not in self._settings.hosts:
            raise StatusError(
                Code.PERMISSION_DENIED,
                "this server is not reached by that name; [fcp:dashboard] hosts may allow it",
            )

    def visitor(self, request: PageRequest) -> Visitor | None:
        """Return who sends a request; None if nobody who is let in."""
        if request.admin:
            return self._visitor("admin", "certificate")
        value = decode_signed_value(
            self._cookie_key,
            COOKIE,
            _cookies(request.headers).get(COOKIE),
            max_age_days=self._settings.login_seconds / 86400,
            clock=self._clock,
        )
        role, _, nonce = (value or b"").decode("utf-8", "replace").partition(":")
        if role == "viewer" and self._settings.viewer_token is None:
            return None
        return self._visitor(role, nonce) if role in ("admin", "viewer") else None

    def _visitor(self, role: str, nonce: str) -> Visitor:
        form = hmac.new(self._form_key, f"{role}:{nonce}".encode(), "sha256").hexdigest()
        return Visitor(role, form, tuple(self._settings.actions) if role == "admin" else ())

    def role_of(self, token: str) -> str | None:
        """Return what a token makes of somebody; None if it is no token of ours."""
        viewer = self._settings.viewer_token
        if self._site.knows(token):
            return "admin"
        if viewer is not None and hmac.compare_digest(token.strip().encode(), viewer.encode()):
            return "viewer"
        return None

    def make_link(self) -> str:
        """Return a word that lets somebody in as the admin, once."""
        now = self._clock()
        self._links = {word: until for word, until in self._links.items() if until > now}
        while len(self._links) >= LINKS:
            del self._links[next(iter(self._links))]
        word = secrets.token_urlsafe(32)
        self._links[word] = now + LINK_SECONDS
        return word

    def take_link(self, word: str) -> bool:
        """Whether a word is good, which it then was."""
        return self._links.pop(word, 0.0) > self._clock()

    def cookie(self, request: PageRequest, role: str) -> str:
        """Return the header that logs somebody in."""
        signed = create_signed_value(
            self._cookie_key, COOKIE, f"{role}:{secrets.token_urlsafe(16)}", clock=self._clock
        )
        age = int(self._settings.login_seconds)
        return f"{COOKIE}={signed.decode()}; Max-Age={age}{_attributes(request)}"

    @staticmethod
    def no_cookie(request: PageRequest) -> str:
        """Return the header that logs somebody out."""
        return f"{COOKIE}=; Max-Age=0{_attributes(request)}"

    @staticmethod
    def check_form(request: PageRequest, visitor: Visitor, form: Mapping[str, str]) -> None:
        """Refuse a form that another site had the browser send.

        :raises StatusError: PERMISSION_DENIED.
        """
        given = form.get("form_token", "")
        if not hmac.compare_digest(given.encode(), visitor.form_token.encode()):
            raise StatusError(
                Code.PERMISSION_DENIED, "this form is out of date; go back, reload, try again"
            )
        check_origin(request)


def check_origin(request: PageRequest) -> None:
    """Refuse what a page of another site sends.

    :raises StatusError: PERMISSION_DENIED.
    """
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    foreign = origin is not None and _split(origin).netloc != request.headers.get("host")
    # A proxy may have changed the host; browsers of today say themselves where a form is from.
    if site not in ("same-origin", "none") or (foreign and "sec-fetch-site" not in request.headers):
        raise StatusError(Code.PERMISSION_DENIED, "a page of another site sent this")


def _split(address: str) -> SplitResult:
    """Return the parts of an address, empty ones if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _attributes(request: PageRequest) -> str:
    # No path: it then is the one of the pages, whatever prefix a proxy gives them.
    secure = request.secure or request.headers.get("x-forwarded-proto", "") == "https"
    return f"; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    try:
        found: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in found.items()}
