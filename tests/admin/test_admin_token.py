"""Which Authorization headers open the admin API, on a real socket: the token after Bearer only."""

from __future__ import annotations

import base64
import http.client
import json

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http.admin_auth import AdminCheck

WAIT = 60
TOKEN = "a-token-of-enough-characters"  # the one of the fixtures
BASIC = base64.b64encode(f"admin:{TOKEN}".encode()).decode()


@pytest.fixture
def ask(make_server):
    """Ask for the tasks with these Authorization headers; return status and challenge."""
    assert make_server.token == TOKEN
    port = make_server().server.port

    def ask(*authorizations, path="/admin/v1/tasks", **headers):
        connection = http.client.HTTPConnection("localhost", port, timeout=WAIT)
        connection.putrequest("GET", path)
        for value in authorizations:
            connection.putheader("Authorization", value)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        reply = connection.getresponse()
        body = json.loads(reply.read())
        connection.close()
        if reply.status == 401:
            assert TOKEN not in json.dumps(body)
            assert "tasks" not in body
        return reply.status, reply.headers["WWW-Authenticate"]

    return ask


OPENS = [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER {TOKEN}", f"Bearer   {TOKEN}"]
REFUSED = [
    (),
    ("",),
    ("Bearer",),
    ("Bearer ",),
    (TOKEN,),
    (f"Basic {TOKEN}",),
    (f"Basic {BASIC}",),
    (f"Digest {TOKEN}",),
    (f"Token {TOKEN}",),
    (f"ApiKey {TOKEN}",),
    (f"Bearerx {TOKEN}",),
    (f"xBearer {TOKEN}",),
    (f"Bear er {TOKEN}",),
    (f"Bearer{TOKEN}",),
    (f"Bearer:{TOKEN}",),
    (f"Bearer={TOKEN}",),
    (f"Bearer\t{TOKEN}",),
    (f"Bearer Bearer {TOKEN}",),
    (f"Bearer {TOKEN} {TOKEN}",),
    (f"Bearer {TOKEN},",),
    (f'Bearer "{TOKEN}"',),
    (f"Bearer {TOKEN.upper()}",),
    (f"Bearer {TOKEN[:-1]}",),
    (f"{TOKEN} Bearer",),
    # Several headers are none that anybody means; which one counted would be a matter of luck.
    (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
    (f"Bearer {TOKEN}", "Bearer wrong"),
    ("Bearer wrong", f"Bearer {TOKEN}"),
    (f"Basic {BASIC}", f"Bearer {TOKEN}"),
    (f"Bearer {TOKEN}", f"Basic {BASIC}"),
    ("", f"Bearer {TOKEN}"),
]


def test_the_token_after_bearer_opens_and_nothing_else_does(ask):
    assert [ask(value) for value in OPENS] == [(200, None)] * len(OPENS)
    answers = {values: ask(*values) for values in REFUSED}
    assert answers == dict.fromkeys(REFUSED, (401, "Bearer"))


def test_the_token_opens_in_no_other_place(ask):
    assert ask(path=f"/admin/v1/tasks?access_token={TOKEN}") == (401, "Bearer")
    for name in ("Proxy_Authorization", "X_Authorization", "X_Goog_Api_Key", "Cookie"):
        assert ask(**{name: f"Bearer {TOKEN}"}) == (401, "Bearer")


def certificate(*names):
    return {"subject": tuple(((("commonName", name)),) for name in names)}


@pytest.mark.parametrize(
    ("token", "names", "authorization", "who", "opens"),
    [
        (TOKEN, (), f"Bearer {TOKEN}", None, True),
        (TOKEN, (), f"Basic {TOKEN}", None, False),
        (TOKEN, ("operator",), f"Basic {TOKEN}", certificate("operator"), True),
        (TOKEN, ("operator",), f"Basic {TOKEN}", certificate("device"), False),
        (TOKEN, ("operator",), "", certificate("operator"), True),
        (TOKEN, ("operator",), "", certificate("Operator"), False),
        (TOKEN, ("operator",), "", {"subject": ((("organizationName", "operator"),),)}, False),
        (TOKEN, ("operator",), "", {}, False),
        # Without a token none opens, not even one of no length.
        (None, ("operator",), "Bearer ", None, False),
        (None, ("operator",), "Bearer", None, False),
        (None, ("operator",), "", None, False),
        (None, ("operator",), f"Bearer {TOKEN}", certificate("operator"), True),
        (None, (), "Bearer None", None, False),
    ],
)
def test_a_token_or_a_certificate(token, names, authorization, who, opens):
    check = AdminCheck(token, names)
    if opens:
        check.check(authorization, who)
        return
    with pytest.raises(StatusError) as refused:
        check.check(authorization, who)
    assert refused.value.code is Code.UNAUTHENTICATED
