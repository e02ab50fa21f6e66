"""A server with the dashboard, and somebody who asks it."""

import http.client
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

import pytest

from fcp_core.testing.pytest_plugin import fcp_client, fcp_clock, fcp_population, fcp_server
from fcp_dashboard.plugin import DashboardPlugin

#: Fixtures for the tests here; a list of plugins may stand in the topmost folder only.
__all__ = ["fcp_client", "fcp_clock", "fcp_population", "fcp_server"]

TOKEN = "a-token-of-the-tests"


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def text(self):
        return self.body.decode()


@dataclass
class Browser:
    """Asks as a browser does, without running anything."""

    url: str
    cookie: str = ""
    headers: dict = field(default_factory=dict)

    def ask(self, path="", *, method="GET", form=None, **headers):
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        sent = {**self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        if self.cookie:
            sent["Cookie"] = self.cookie
        body = None
        if form is not None:
            method, body = "POST", urlencode(form)
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, f"/dashboard{path}", body, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def log_in(self, token=TOKEN):
        answer = self.ask("/login", form={"token": token})
        assert answer.status == 303, answer.text
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return self

    def form_token(self, path="/"):
        return re.search(r'name="form_token" value="(\w+)"', self.ask(path).text)[1]


@pytest.fixture
def dashboard(fcp_server):
    """Start a server with the dashboard: ``dashboard(actions=["cancel"])``."""

    def start(overrides=None, populations=("people",), **options):
        given = {f"dashboard.{name}": value for name, value in options.items()}
        chosen = {"pages": ["dashboard"], "admin.token": TOKEN, **given, **(overrides or {})}
        extra = [DashboardPlugin()]
        return fcp_server(overrides=chosen, extra=extra, populations=populations)

    return start


@pytest.fixture
def browser():
    """Make a browser of a server."""
    return lambda server: Browser(server.url)
