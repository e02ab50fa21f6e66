"""What the dashboard costs: with 1,000 tasks, and 100,000 devices a minute.

Run ``python benchmarks/bench_dashboard.py``. A real server has 1,000 open tasks; its overview is
asked for over HTTP as a browser does it. The devices are events of as many sessions, which the
recorder counts: a check-in, an assignment and a contribution each. Somebody looks all the time, a
page each five seconds. Where there is a Chromium, it says itself when it has painted the page.
"""

from __future__ import annotations

import gzip
import http.client
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from goals import Goal, main

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.events import Assigned, CheckedIn, Contributed
from fcp_core.server import Server
from fcp_core.testing.servers import RunningServer, query_task

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "dashboard" / "src"))

from fcp_dashboard.plugin import DashboardPlugin
from fcp_dashboard.recorder import Recorder

TASKS, DEVICES = 1_000, 100_000
#: What happens to a device: a check-in, an assignment, a contribution.
EVENTS = 3
TOKEN = "a-token-of-the-benchmark"
#: How often a page asks again, in seconds.
EVERY = 5.0


class Visitor:
    """Asks for pages on one connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
        self._headers = {"Accept-Encoding": "gzip"}
        form = urlencode({"token": TOKEN})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/dashboard/login", form, kind)
        answer = self._connection.getresponse()
        answer.read()
        self._headers["Cookie"] = answer.headers["Set-Cookie"].partition(";")[0]

    @property
    def cookie(self) -> str:
        """What lets in a browser."""
        return self._headers["Cookie"]

    def get(self, path: str) -> bytes:
        """Return a page as it was sent."""
        self._connection.request("GET", f"/dashboard/{path}", headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: HTTP {answer.status}")
        return body

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def server_of(tasks: int) -> RunningServer:
    """Return a server with so many open tasks, which is not started."""
    plugins = Plugins.load(
        environ={},
        working_folder=tempfile.gettempdir(),
        overrides={"pages": ["dashboard"], "admin.token": TOKEN},
        extra=[DashboardPlugin()],
    )
    return RunningServer(Server(plugins, populations=()))


def submit(server: RunningServer, tasks: int) -> None:
    """Offer tasks of a hundred populations."""
    value = TensorSpec("v", DataType.INT64, (2,))
    total = Intrinsic("federated_sum", (value,), (TensorSpec("s", DataType.INT64, (2,)),))
    for number in range(tasks):
        population = f"population/{number % 100}"
        server.submit(query_task(total, population=population, name=f"task/{number}"))


def painted(url: str, cookie: str, looks: int) -> tuple[float, float] | None:
    """Return the seconds after which Chromium has painted the overview, and a page of a form.

    Medians of some looks, each of a browser that has nothing of the page yet. The form is what the
    browser and the machine take anyway. None: there is no Chromium.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        return None
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    entry = "performance.getEntriesByName('first-contentful-paint')"
    found: dict[str, list[float]] = {"": [], "login": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags, timeout=180_000)
        for number in range(2 * looks + 2):
            what = ("", "login")[number % 2]
            context = browser.new_context(
                viewport={"width": 1440, "height": 900}, extra_http_headers={"Cookie": cookie}
            )
            page = context.new_page()
            page.goto(f"{url}dashboard/{what}", timeout=180_000)
            # Not wait_for_function: the pages' own security policy forbids what that does.
            while not page.evaluate(f"{entry}.length"):
                page.wait_for_timeout(20)
            found[what].append(page.evaluate(f"{entry}[0].startTime") / 1000)
            context.close()
            time.sleep(1.1)  # no two are of one snapshot
        browser.close()
    # The first look is the browser's own start.
    return statistics.median(found[""][1:]), statistics.median(found["login"][1:])


def processor_of(work: Any) -> float:
    """Return the seconds of processor time that this process needs for something."""
    began = time.process_time()
    work()
    return time.process_time() - began


def count_devices(devices: int) -> float:
    """Return the seconds of processor time in which the events of devices are counted."""
    recorder = Recorder()
    events: list[Any] = []
    for number in range(devices):
        at, where = 1e9 + 60 * number / devices, f"population/{number % 100}"
        session, task = f"session-{number}", f"id-{number % TASKS}"
        name = f"task/{number % TASKS}"
        events.append(CheckedIn(at, where, session, (name,), "1.4.2"))
        events.append(Assigned(at, where, session, task, name))
        events.append(Contributed(at, where, session, task, name, 4096, 2.0, 0.1, 0.01))

    def work() -> None:
        for event in events:
            recorder.event(event)

    return processor_of(work)


def goals(quick: bool = False) -> list[Goal]:
    """Measure all goals; what is smaller in a quick run is scaled up."""
    devices = DEVICES // 10 if quick else DEVICES
    counted = count_devices(devices) * DEVICES / devices
    with server_of(TASKS) as server:
        submit(server, TASKS)
        visitor = Visitor(server.url)
        began = time.perf_counter()
        page = visitor.get("")
        assets = [visitor.get("style.css"), visitor.get("script.js")]
        first = time.perf_counter() - began
        looks = 5 if quick else 20

        def look() -> None:
            for _ in range(looks):
                time.sleep(1.1)  # no two are of one snapshot
                visitor.get("")

        each = processor_of(look) / looks
        paint = painted(server.url, visitor.cookie, looks)
        visitor.close()
    share = 100 * (counted + each * 60 / EVERY) / 60
    sent = sum(map(len, (page, *assets)))
    size = len(gzip.decompress(page)) / 1000
    print(
        f"{DEVICES:,} devices: {counted:.2f} s of a processor, "
        f"{1e6 * counted / (EVENTS * DEVICES):.2g} µs an event; a look at {TASKS:,} tasks: "
        f"{1000 * each:.1f} ms ({size:.0f} KB of HTML)",
        file=sys.stderr,
    )
    what = f"painted in Chromium, {TASKS:,} tasks"
    seen = []
    if paint is not None:
        seen.append(Goal("dashboard", what, paint[0], 0.3, "s"))
        print(f"painted after {paint[0]:.3f} s, a form after {paint[1]:.3f} s", file=sys.stderr)
    return [
        *seen,
        Goal("dashboard", f"first page, style and script, {TASKS:,} tasks", first, 0.3, "s"),
        Goal("dashboard", "the same, compressed", sent / 1000, 60, "KB"),
        Goal(
            "dashboard",
            f"a page of {TASKS:,} tasks open, {DEVICES:,} devices a minute: of one core",
            share,
            2.0,
            "%",
        ),
    ]


if __name__ == "__main__":
    main(goals, __doc__)
