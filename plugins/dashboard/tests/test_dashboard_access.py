"""Who gets the pages: tokens, cookies, links, forms of other sites, names of other machines."""

import http.client
from urllib.parse import urlsplit

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_dashboard.plugin import DashboardPlugin

TOKEN = "a-token-of-the-tests"
VIEWER = "a-token-of-viewers"


def test_a_browser_without_a_cookie_is_asked_for_a_token(dashboard, browser):
    somebody = browser(dashboard())
    assert somebody.ask().headers["location"] == "dashboard/"
    for path, login in (("/", "login"), ("/tasks/x", "../login?next=tasks/x")):
        answer = somebody.ask(path)
        assert (answer.status, answer.headers["location"]) == (303, login)
        assert answer.body == b""
    assert 'type="password"' in somebody.ask("/login").text
    assert somebody.ask("/snapshot.json", accept="application/json").status == 401


def test_a_token_is_exchanged_for_a_cookie(dashboard, browser):
    somebody = browser(dashboard())
    answer = somebody.ask("/login", form={"token": TOKEN, "next": "tasks"})
    assert (answer.status, answer.headers["location"]) == (303, "./tasks")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie  # it came over plain HTTP
    assert TOKEN not in cookie
    behind = somebody.ask("/login", form={"token": TOKEN}, x_forwarded_proto="https")
    assert "; Secure" in behind.headers["set-cookie"]
    somebody.cookie = cookie.partition(";")[0]
    assert somebody.ask("/").status == 200
    somebody.cookie = somebody.cookie[:-1] + ("1" if somebody.cookie[-1] != "1" else "2")
    assert somebody.ask("/").status == 303


@pytest.mark.parametrize("where", ["//evil.example/", "https://evil.example", "..\\x", "a/../../b"])
def test_a_login_leads_to_our_pages_only(dashboard, browser, where):
    answer = browser(dashboard()).ask("/login", form={"token": TOKEN, "next": where})
    assert answer.headers["location"] == "./"


def test_a_wrong_token_is_told_so(dashboard, browser):
    answer = browser(dashboard()).ask("/login", form={"token": "another-token-of-tests"})
    assert answer.status == 403
    assert "This is not the token." in answer.text
    assert "set-cookie" not in answer.headers


def test_without_an_admin_token_there_are_no_pages(fcp_server, browser):
    server = fcp_server(overrides={"pages": ["dashboard"]}, extra=[DashboardPlugin()])
    assert browser(server).ask("/login").status == 404


def test_a_login_ends(dashboard, browser):
    somebody = browser(dashboard()).log_in()
    answer = somebody.ask("/logout", form={"form_token": somebody.form_token()})
    assert answer.status == 303
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_a_program_has_the_same_with_the_token(dashboard, browser):
    somebody = browser(dashboard())
    answer = somebody.ask("/snapshot.json", authorization=f"Bearer {TOKEN}")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"


def test_a_link_logs_in_once(dashboard, browser):
    somebody = browser(dashboard())
    assert somebody.ask("/link", method="POST").status == 401
    made = somebody.ask("/link", method="POST", authorization=f"Bearer {TOKEN}")
    path = made.text.partition("dashboard")[2].partition('"')[0]
    # Looking at it, as a mail program does, uses nothing up.
    for _ in range(2):
        assert "logs you in" in somebody.ask(path).text
    word = path.partition("link=")[2]
    assert somebody.ask("/login", form={"link": word}).status == 303
    again = somebody.ask("/login", form={"link": word})
    assert again.status == 403
    assert "was used" in again.text


def test_a_viewer_may_look_only(dashboard, browser, tmp_path):
    (tmp_path / "viewers").write_text(f"{VIEWER}\n")
    server = dashboard(actions=["cancel"], viewer_token_file=str(tmp_path / "viewers"))
    viewer = browser(server).log_in(VIEWER)
    assert "viewer" in viewer.ask("/").text
    form = {"form_token": viewer.form_token()}
    assert viewer.ask("/tasks/x/cancel", form=form).status == 403


def test_a_form_of_another_site_is_refused(dashboard, browser):
    somebody = browser(dashboard(actions=["cancel"])).log_in()
    token = somebody.form_token()
    refused = [
        somebody.ask("/logout", form={}),
        somebody.ask("/logout", form={"form_token": "0" * 64}),
        somebody.ask("/logout", form={"form_token": token}, origin="https://evil.example"),
        somebody.ask("/logout", form={"form_token": token}, sec_fetch_site="cross-site"),
        somebody.ask("/login", form={"token": TOKEN}, sec_fetch_site="cross-site"),
        somebody.ask("/login", form={"token": TOKEN}, origin="http://["),
    ]
    assert [answer.status for answer in refused] == [403] * 6
    assert all("set-cookie" not in answer.headers for answer in refused)
    assert somebody.ask("/logout", form={"form_token": token}).status == 303


def test_the_token_of_a_form_is_that_of_its_login(dashboard, browser):
    server = dashboard()
    one, other = browser(server).log_in(), browser(server).log_in()
    assert one.form_token() != other.form_token()
    assert one.ask("/logout", form={"form_token": other.form_token()}).status == 403


def test_a_name_of_another_machine_does_not_lead_here(dashboard, browser):
    somebody = browser(dashboard(hosts=["ops.example"])).log_in()
    for host in ("127.0.0.1", "[::1]:8080", "ops.example"):
        assert somebody.ask("/", host=host).status == 200
    for host in ("evil.example", "[", "[::1"):
        assert somebody.ask("/", host=host).status == 403


def test_every_answer_has_the_headers_that_browsers_heed(dashboard, browser):
    somebody = browser(dashboard())
    answers = [somebody.ask("/login"), somebody.ask("/"), somebody.ask("/style.css")]
    somebody.log_in()
    answers += [somebody.ask("/"), somebody.ask("/tasks/none"), somebody.ask("/nothing")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert [answer.status for answer in answers] == [200, 303, 200, 200, 404, 404]


def test_what_is_no_form_is_refused(dashboard, browser):
    server = dashboard()
    parts = urlsplit(server.url)
    for body, kind, status in (
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 400),
        (b"a=1&" * 200, "application/x-www-form-urlencoded", 400),
        (b"a" * (2 << 20), "application/x-www-form-urlencoded", 413),
    ):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        connection.request("POST", "/dashboard/login", body, {"Content-Type": kind})
        assert connection.getresponse().status == status
        connection.close()
    assert browser(server).ask("/login", method="DELETE").status == 405


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": ["reboot"]}, "there is no action reboot; there are cancel, submit"),
        ({"viewer_token_file": "nowhere"}, "the viewer token file .*nowhere"),
    ],
)
def test_a_wrong_option_stops_the_start(dashboard, options, message):
    with pytest.raises(UsageError, match=message):
        dashboard(**options)


def test_pages_that_nobody_offers_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"offers the pages 'dashbord'.*Is fcp-server-dashbord"):
        Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides={"pages": ["dashbord"]},
            extra=[DashboardPlugin()],
        )
