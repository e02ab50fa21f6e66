"""The pages in a real browser: clicks, refreshing, accessibility, and pictures for the documents.

Pictures are written to ``build/dashboard``; nothing compares them.
"""

import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.testing.servers import query_task

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-tests"
PICTURES = Path(__file__).parents[3] / "build" / "dashboard"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
PAGES = (
    *("", "tasks", "populations", "programs", "program?population=people&name=train"),
    *("sessions", "errors", "events?kind=TaskOpened", "members", "server", "submit"),
)
VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests here; it must be gone before another test has an event loop."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "these tests need Debian's chromium: 'make test' installs it, as root"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=180_000)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a window of somebody who has logged in; what the console says of errors is a failure."""
    contexts, said = [], []

    def open_window(server, path="", **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "console",
            lambda message: said.append(message.text) if message.type == "error" else None,
        )
        page.goto(f"{server.url}dashboard/{path}")
        page.fill("#token", TOKEN)
        page.click("button")
        page.wait_for_selector("h1")
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def lively(dashboard, fcp_client):
    """A server with a program of some rounds, and tasks that go on."""
    server = dashboard(actions=["cancel", "submit"])

    def contribute(number, vector, version):
        with fcp_client(server, {"v": vector}, client_version=version) as device:
            device.run_once()

    for number in range(5):
        task = server.submit(query_task(SUM, name="train", goal_count=4))
        for device in range(4 + number % 2):
            wrong = device == 4
            contribute(device, [1, 2, 3] if wrong else [1, 2], "1.5.0" if wrong else "1.4.2")
        if number % 2:
            contribute(9, [1, 2], "1.5.0")
        server.result(task)
    server.submit(query_task(SUM, name="keyboard/typing_speed", goal_count=250))
    for device in range(12):
        contribute(device, [1, 2], "1.4.2")
    server.submit(query_task(SUM, name="keyboard/emoji", goal_count=1000))
    for device in range(8):
        contribute(device, [1, 2] if device % 4 else [1], "1.5.0")
    return server


def picture(page, name, **options):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", **options)


def test_somebody_looks_around(lively, visit):
    page = visit(lively)
    picture(page, "overview")
    page.click("text=keyboard/typing_speed")
    assert page.inner_text("h1").startswith("keyboard/typing_speed")
    assert "of 250 are missing" in page.inner_text(".notice")
    picture(page, "task", full_page=True)
    page.click("nav >> text=Sessions")
    assert page.locator("code", has_text="-v[]+^").count()
    picture(page, "sessions")
    page.click("nav >> text=Programs")
    page.click("td >> text=train")
    picture(page, "program")
    page.locator("td a").first.click()
    page.click("text=Result")
    assert page.inner_text("td") == "4"
    page.click("text=Log out")
    assert page.url.endswith("/login")


def test_a_page_refreshes_itself_and_keeps_the_place(lively, visit):
    page = visit(lively, "tasks")
    page.clock.install()
    page.reload()
    link = page.locator("tbody a").first
    link.focus()
    address = link.get_attribute("href")
    lively.submit(query_task(SUM, name="fresh"))
    fresh = page.locator("a", has_text="fresh")
    while not fresh.count():
        page.clock.fast_forward(5100)
    assert page.evaluate("document.activeElement.getAttribute('href')") == address
    page.click("text=Pause refreshing")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    lively.submit(query_task(SUM, name="later"))
    page.clock.fast_forward(60_000)
    assert not page.locator("a", has_text="later").count()
    page.click("text=Go on refreshing")
    while not page.locator("a", has_text="later").count():
        page.clock.fast_forward(5100)
    page.context.clear_cookies()  # as when the login is over
    while not page.locator("#token").count():
        page.clock.fast_forward(5100)
    assert page.url.endswith("/login?next=tasks")


def test_a_task_is_cancelled_after_a_question(lively, visit):
    page = visit(lively)
    page.click("text=keyboard/emoji")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("text=Cancel the task")
    assert "open" in page.inner_text("h1")
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("text=Cancel the task")
    page.wait_for_selector("h1 >> text=cancelled")
    assert "CANCELLED: it was cancelled from the dashboard" in page.inner_text(".notice")


def test_it_works_without_scripts(lively, visit):
    page = visit(lively, java_script_enabled=False)
    assert not page.is_visible("#pause")
    page.click("text=keyboard/emoji")
    page.click("text=Cancel the task")
    page.wait_for_selector("h1 >> text=cancelled")
    page.click("nav >> text=Events")
    page.select_option("#f-kind", "TaskClosed")
    page.click("text=Show")
    assert set(page.locator("tbody td:nth-child(2)").all_inner_texts()) == {"TaskClosed"}
    page.click("text=Reload")
    assert "kind=TaskClosed" in page.url


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(lively, visit, scheme):
    """axe finds nothing, in both colour schemes; and no page is wider than a phone."""
    page = visit(lively, color_scheme=scheme)
    # Colours are those of one style sheet: in the other scheme a few pages have all of them.
    for path in PAGES if scheme == "light" else ("", "tasks", "sessions", "submit"):
        page.goto(f"{lively.url}dashboard/{path}")
        found = Axe().run(page).response["violations"]
        assert [(each["id"], [n["html"] for n in each["nodes"]]) for each in found] == [], path
    if scheme == "dark":
        page.goto(f"{lively.url}dashboard/")
        picture(page, "overview-dark")
        return
    page.set_viewport_size({"width": 390, "height": 844})
    for path in PAGES:
        page.goto(f"{lively.url}dashboard/{path}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{path} is {wide} wide"
    page.goto(f"{lively.url}dashboard/")
    picture(page, "phone")


def test_the_login_and_a_report_keep_nobody_out(lively, visit, chromium, tmp_path):
    page = visit(lively)
    page.click("td a, th a")
    with page.expect_download() as download:
        page.click("text=Report")
    path = tmp_path / "report.html"
    download.value.save_as(path)
    other = chromium.new_context(java_script_enabled=True).new_page()
    for address in (f"file://{path}", f"{lively.url}dashboard/login"):
        other.goto(address)
        found = Axe().run(other).response["violations"]
        assert [each["id"] for each in found] == [], address
    picture(other, "login")
    other.context.close()
