"""Makes answers: templates, security headers, compression, and 304 for what has not changed."""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache
from importlib import resources
from typing import Any

from tornado.template import Loader

from fcp_core.plugins.pages import PageAnswer, PageRequest
from fcp_dashboard import formats, marks

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: What is smaller is not compressed.
_SMALL = 600
HTML = "text/html; charset=utf-8"

#: The navigation: path, label.
LINKS = (
    ("", "Overview"),
    ("populations", "Populations"),
    ("programs", "Programs"),
    ("sessions", "Sessions"),
    ("errors", "Errors"),
    ("events", "Events"),
    ("members", "Members"),
    ("server", "Server"),
    ("configuration", "Configuration"),
)


class _Templates(Loader):
    """Reads templates from the package, wherever it is installed."""

    def __init__(self) -> None:
        super().__init__("/", autoescape="xhtml_escape", whitespace="oneline")

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Return the name: there is one folder."""
        return name

    def _create_template(self, name: str) -> Any:
        from tornado.template import Template

        text = (resources.files("fcp_dashboard") / "templates" / name).read_bytes()
        return Template(text, name=name, loader=self)


_TEMPLATES = _Templates()


def page(request: PageRequest, template: str, *, status: int = 200, **values: Any) -> PageAnswer:
    """Return a page.

    :param template: the name of its file.
    :param values: what is in it.
    """
    depth = request.path.count("/") - 1
    names = {
        "up": "../" * depth,
        "here": request.path.strip("/").partition("/")[0],
        "links": LINKS,
        "f": formats,
        "marks": marks,
        "version": version(),
        "visitor": None,
        "problem": "",
        "live": True,
    }
    body = generate(template, **{**names, **values})
    return answer(request, body, HTML, status=status)


def generate(template: str, **values: Any) -> bytes:
    """Return what a template makes of values."""
    return _TEMPLATES.load(template).generate(**values)


def answer(
    request: PageRequest,
    body: bytes,
    kind: str,
    *,
    status: int = 200,
    kept: bool = False,
    headers: dict[str, str] | None = None,
) -> PageAnswer:
    """Return a body with all headers; compressed, if the browser takes it.

    :param kept: whether browsers may keep it, as what is the same for everybody.
    """
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    fields = {
        **_HEADERS,
        "Content-Type": kind,
        "Cache-Control": "max-age=86400" if kept else "no-cache, private",
        "ETag": tag,
        "Vary": "Accept-Encoding, Cookie",
        **(headers or {}),
    }
    known = request.headers.get("if-none-match", "").replace("W/", "")
    if status == 200 and tag in (each.strip() for each in known.split(",")):
        return PageAnswer(b"", 304, fields)
    if len(body) >= _SMALL and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 5, mtime=0)
        fields["Content-Encoding"] = "gzip"
    return PageAnswer(body, status, fields)


def redirect(where: str, headers: dict[str, str] | None = None) -> PageAnswer:
    """Send a browser on.

    :param where: relative to what was asked for, so that it holds behind any proxy.
    """
    fields = {**_HEADERS, "Location": where, "Cache-Control": "no-store", **(headers or {})}
    return PageAnswer(b"", 303, fields)


@lru_cache
def static(name: str) -> bytes:
    """Return a file that is the same for everybody."""
    return (resources.files("fcp_dashboard") / "static" / name).read_bytes()


@lru_cache
def version() -> str:
    """Return a word that changes with the static files."""
    digest = hashlib.sha256(static("style.css") + static("script.js"))
    return digest.hexdigest()[:12]
