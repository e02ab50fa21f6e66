"""What the pages say, over HTTP, of a server with real devices."""

import gzip
import json
import re
import time

import numpy as np
import pytest

from fcp_core.admin.messages import Task
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins import hookimpl
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code
from fcp_core.rounds.events import Released
from fcp_core.rounds.ledger import Ledger
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.testing.servers import query_task
from fcp_dashboard import marks
from fcp_dashboard.plugin import DashboardPlugin
from fcp_dashboard.views.overview import BUSIEST
from fcp_dashboard.views.results import result_page

VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))


def text_of(answer):
    """Return a page as it is read, without tags."""
    text = answer.text.replace("<wbr>", "")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)).replace("\u202f", " ")


def test_an_empty_server_says_what_to_do(dashboard, browser):
    text = text_of(browser(dashboard()).log_in().ask("/"))
    assert "No task is open." in text
    assert "fcp tasks submit" in text


def test_a_task_is_shown_with_what_it_waits_for(dashboard, browser, fcp_population):
    server = dashboard()
    somebody = browser(server).log_in()
    task_id = server.submit(query_task(SUM, name="train", goal_count=3))
    text = text_of(somebody.ask("/"))
    assert "train people open 0 of 3" in text
    assert "3 of 3 are missing: no device of population people has checked in" in text
    fcp_population(server, [{"v": [1, 2]}, {"v": [1, 2, 3]}])
    page = text_of(somebody.ask(f"/tasks/{task_id}"))
    assert "2 of 3 are missing: the last eligible device checked in" in page
    assert re.search(r"Checked in and were offered it 2 Asked for a task 2 100 %", page)
    assert re.search(r"Uploaded it 2 100 % Contributed 1 50 % 1 dropped out", page)
    assert "submit INVALID_ARGUMENT: the task expects v: int64[2]" in page
    fcp_population(server, [{"v": [1, 2]}, {"v": [3, 4]}])
    server.result(task_id)
    assert "completed" in text_of(somebody.ask(f"/tasks/{task_id}"))
    while "1 task has ended" not in text_of(somebody.ask("/")):
        time.sleep(0.1)  # what all look at may be a second old


@pytest.mark.slow
def test_the_list_of_tasks_has_pages(dashboard, browser):
    server = dashboard()
    for number in range(60):
        server.submit(query_task(SUM, name=f"task/{number}"))
    somebody = browser(server).log_in()
    first, second = somebody.ask("/"), somebody.ask("/?page=2")
    assert "Page 1 of 2" in text_of(first)
    assert "task/59" in text_of(first)
    assert "task/9 " not in text_of(first)
    assert "task/9 " in text_of(second)
    assert "60 open, the newest first" in text_of(first)
    assert "task/9 " not in text_of(somebody.ask("/?page=1"))  # after a look at all of them, too
    for odd in ("0", "-1", "x", "9" * 22, "9" * 5000, "²"):
        assert somebody.ask(f"/?page={odd.encode().hex() if odd == '²' else odd}").status == 200
    assert "There is no such task." in text_of(somebody.ask("/tasks?state=ended"))


def test_the_overview_has_the_busiest_populations(dashboard, browser):
    names = [f"p{number}" for number in range(BUSIEST + 2)]
    server = dashboard(populations=names)
    server.submit(query_task(SUM, population=names[-1]))
    somebody = browser(server).log_in()
    page = somebody.ask("/")
    assert "2 more populations, less busy than these" in text_of(page)
    shown = re.findall(r'<th scope="row"><bdi>(p\d+)', page.text)
    assert len(shown) == BUSIEST
    assert names[-1] in shown
    assert all(name in text_of(somebody.ask("/populations")) for name in names)


def test_what_has_not_changed_is_not_sent_again(dashboard, browser):
    somebody = browser(dashboard()).log_in()
    answer = somebody.ask("/style.css")
    again = somebody.ask("/style.css", if_none_match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    packed = somebody.ask("/style.css", accept_encoding="gzip, deflate")
    assert gzip.decompress(packed.body) == answer.body
    assert somebody.ask("/", method="HEAD").body == b""


def test_a_first_visit_is_small(dashboard, browser):
    """Everything that a browser loads for the overview, compressed."""
    server = dashboard()
    for number in range(100):
        server.submit(query_task(SUM, name=f"task/{number}"))
    somebody = browser(server).log_in()
    sizes = [
        len(somebody.ask(path, accept_encoding="gzip").body)
        for path in ("/", "/style.css", "/script.js")
    ]
    assert sum(sizes) < 60_000


def test_nothing_is_asked_of_another_host(dashboard, browser):
    somebody = browser(dashboard()).log_in()
    for path in ("/", "/login"):
        assert not re.search(r'(?:src|href|action)="(?:\w+:)?//', somebody.ask(path).text)
        assert not re.search(r"<(?:script|style)>| style=| on\w+=", somebody.ask(path).text)


@pytest.mark.parametrize("actions", [[], ["cancel"]])
def test_a_task_is_cancelled_by_those_who_may(dashboard, browser, actions):
    server = dashboard(actions=actions)
    somebody = browser(server).log_in()
    task_id = server.submit(query_task(SUM))
    page = somebody.ask(f"/tasks/{task_id}")
    assert ("Cancel the task" in page.text) == bool(actions)
    form = {"form_token": somebody.form_token()}
    answer = somebody.ask(f"/tasks/{task_id}/cancel", form=form)
    if actions:
        assert (answer.status, answer.headers["location"]) == (303, f"../{task_id}")
        assert server.status(task_id).state.value == "cancelled"
        assert "cancelled from the dashboard" in text_of(somebody.ask(f"/tasks/{task_id}"))
    else:
        assert answer.status == 403
        assert "you may not cancel" in answer.text
        assert server.status(task_id).state.value == "open"


def test_the_snapshot_is_json(dashboard, browser, fcp_population):
    server = dashboard()
    task_id = server.submit(query_task(SUM, goal_count=2))
    fcp_population(server, [{"v": [1, 2]}])
    snapshot = json.loads(browser(server).log_in().ask("/snapshot.json").body)
    (task,) = snapshot["tasks"]
    assert (task["task_id"], task["contributed"]) == (task_id, 1)
    (member,) = snapshot["members"]
    (seen,) = member["tasks"]
    assert (seen["offered"], seen["eligible"], seen["assigned"], seen["contributed"]) == (1,) * 4
    assert [shape["shape"] for shape in member["shapes"]] == ["-v[]+^"]
    assert sum(seen["contributions"]) == 1


def test_what_is_not_there_is_a_page_too(dashboard, browser):
    somebody = browser(dashboard()).log_in()
    answer = somebody.ask("/tasks/%3Cscript%3Ealert(1)%3C%2Fscript%3E")
    assert answer.status == 404
    assert "<script>alert" not in answer.text
    assert "Not found" in answer.text


PAGES = (
    "/",
    "/tasks",
    "/populations",
    "/programs",
    "/program?population=people&name=train",
    "/sessions",
    "/errors",
    "/events",
    "/members",
    "/server",
    "/configuration",
)


@pytest.fixture
def lively(dashboard, fcp_population):
    """A server on which each kind of thing has happened, and its tasks' ids."""
    server = dashboard(actions=["cancel", "submit"])
    ids = []
    for _ in range(3):
        ids.append(server.submit(query_task(SUM, name="train", goal_count=2)))
        fcp_population(server, [{"v": [1, 2]}, {"v": [1, 2, 3]}, {"v": [3, 4]}], threads=1)
        server.result(ids[-1])
    ids.append(server.submit(query_task(SUM, name="train", goal_count=5)))
    return server, ids


def test_each_page_shows_what_it_is_for(lively, browser):
    server, _ = lively
    somebody = browser(server).log_in()
    pages = {path: text_of(somebody.ask(path)) for path in PAGES}
    assert all(somebody.ask(path).status == 200 for path in PAGES)
    assert "Seen since" in pages["/"]
    assert re.search(r"people .* none set", pages["/populations"])
    assert re.search(r"train people 4 100 %", pages["/programs"])
    assert "2 of 2" in pages["/program?population=people&name=train"]
    assert "-v[]+^" in pages["/sessions"]
    assert "-v[]+#" in pages["/sessions"]
    assert "3 devices with a task did not contribute, in 1 way." in pages["/errors"]
    assert re.search(r"TaskClosed people train OK", pages["/events"])
    assert re.search(r"alone serves .* people", pages["/members"])
    assert "StartTaskAssignment" in pages["/server"]
    assert re.search(r"≤ [\d.]+ m?s", pages["/server"])
    assert "a-token-of-the-tests" not in pages["/configuration"]
    assert "[fcp:dashboard] actions" in pages["/configuration"]


def test_what_does_not_fit_is_said_and_can_be_found(lively, browser, monkeypatch):
    server, _ = lively
    server.submit(query_task(SUM, name="later"))
    monkeypatch.setattr("fcp_dashboard.views.results.PROGRAMS", 1)
    monkeypatch.setattr("fcp_dashboard.views.fleet._ROWS", 1)
    somebody = browser(server).log_in()
    first, second = (somebody.ask(f"/programs{query}") for query in ("", "?page=2"))
    assert "later" in first.text
    assert 'href="programs?page=2">Earlier ones' in first.text
    assert "train" not in first.text
    assert "Page 2 of 2, of 2 names." in text_of(second)
    assert "train" in second.text
    assert "The first 1 of 2 are shown." in text_of(somebody.ask("/sessions"))
    assert re.search(r"The first 1 of \d+ are shown\.", text_of(somebody.ask("/events")))


def test_a_page_without_anything_says_so(dashboard, browser):
    somebody = browser(dashboard()).log_in()
    for path in PAGES:
        answer = somebody.ask(path)
        assert answer.status == (404 if path.startswith("/program?") else 200), path
    assert "No device has failed" in text_of(somebody.ask("/errors"))
    assert "No session has ended yet" in text_of(somebody.ask("/sessions"))


def test_events_are_chosen(lively, browser):
    server, _ = lively
    text = text_of(browser(server).log_in().ask("/events?kind=TaskOpened"))
    assert "wants 2 contributions" in text
    assert "INVALID_ARGUMENT" not in text


def test_a_result_is_shown_and_downloaded(lively, browser):
    server, ids = lively
    somebody = browser(server).log_in()
    text = text_of(somebody.ask(f"/tasks/{ids[0]}/result"))
    assert re.search(r"2 rows. sum 4 6", text)
    assert somebody.ask(f"/tasks/{ids[0]}/result.csv").text == "sum\n4\n6\n"
    checkpoint = somebody.ask(f"/tasks/{ids[0]}/result.ckpt")
    assert open_checkpoint(checkpoint.body)["sum"].tolist() == [4, 6]
    assert "attachment" in checkpoint.headers["content-disposition"]
    none = somebody.ask(f"/tasks/{ids[3]}/result")
    assert "has not ended" in none.text


def test_a_result_that_is_no_table_is_shown_by_its_tensors():
    data = write_checkpoint(
        {"v": np.array([1, 2]), "w": np.array([[1.0, 3.0, 9.5]])}, "federated_compute"
    )
    task = Task.of(TaskStatus("id", "people", "train", TaskState.COMPLETED, 2))
    (section,) = result_page(task, data).sections
    assert section.caption == "2 tensors; it is no table."
    assert section.rows == [
        ["v", "int64", "2", "2", "1", "1.5", "2"],
        ["w", "float64", "1 x 3", "3", "1", "4.5", "9.5"],
    ]


def test_a_report_is_one_file(lively, browser):
    server, ids = lively
    answer = browser(server).log_in().ask(f"/tasks/{ids[0]}/report.html")
    assert len(answer.body) < 300_000
    assert "attachment" in answer.headers["content-disposition"]
    # It asks nobody for anything.
    links = re.findall(r'(?:src|href|action|url)\s*[=(]\s*"?([^"\s>)]*)', answer.text)
    assert set(links) <= {"data:,"}
    assert "<script" not in answer.text
    text = text_of(answer)
    assert "Contributed 2" in text
    assert "Result: Table" in text
    assert ids[0] in text
    open_one = browser(server).log_in().ask(f"/tasks/{ids[3]}/report.html")
    assert "are missing" in text_of(open_one)


TASK_FILE = """
[task]
population = "people"
name = "times"
goal_count = 3

[[query]]
collection_uri = "app:/test"
vectors = { v = "int64" }

[result]
sum = ["v"]
"""


def test_a_task_file_is_submitted_by_those_who_may(lively, dashboard, browser):
    server, _ = lively
    somebody = browser(server).log_in()
    token = somebody.form_token("/submit")
    wrong = somebody.ask("/submit", form={"form_token": token, "text": "[task]\nname = 1\n"})
    assert wrong.status == 400
    assert "the task: query: it is missing" in wrong.text
    assert "name = 1" in wrong.text  # what was typed is not lost
    form = {"form_token": token, "text": TASK_FILE.replace("\n", "\r\n")}
    answer = somebody.ask("/submit", form=form)
    assert answer.status == 303, text_of(answer)
    assert "times open" in text_of(somebody.ask("/" + answer.headers["location"]))
    other = browser(dashboard()).log_in()
    assert other.ask("/submit").status == 404
    form = {"form_token": other.form_token(), "text": TASK_FILE}
    assert other.ask("/submit", form=form).status == 403


def test_names_break_between_their_words():
    assert marks.name("a/b_c__d<") == "a/<wbr>b_<wbr>c__<wbr>d&lt;"


def test_what_a_device_says_is_never_markup(dashboard, browser, fcp_client, fcp_population):
    evil = "<img src=x onerror=alert(1)>\"'&\u202e"
    server = dashboard()
    task_id = server.submit(query_task(SUM, name="train", goal_count=2))
    with fcp_client(server, {"v": [1, 2, 3]}, client_version=evil) as device:
        device.run_once()
    server._run(_drop(server, task_id, evil))
    somebody = browser(server).log_in()
    for path in (*PAGES, f"/tasks/{task_id}", f"/tasks/{task_id}/report.html"):
        text = somebody.ask(path).text
        assert "<img" not in text, path
        assert "onerror=alert(1)>" not in text, path
    assert "other" in text_of(somebody.ask("/sessions"))


async def _drop(server, task_id, message):
    """Have a device say something when it gives up."""
    runner = server.server.services.tasks._running[task_id]
    machine = runner.machine
    machine.assign("id", "", server.server.services.tasks._with.clock.now())
    runner.drop("id", "aborted", Code.INTERNAL, message)


class Counting(Ledger):
    """A ledger that lets everything pass."""

    name, summary = "counting", "counts releases"

    def accounts(self, planned):
        return []

    def check(self, planned, accounts, others):
        return []

    def book(self, planned, accounts):
        return {}


class CountingPlugin:
    @hookimpl
    def fcp_register_ledgers(self):
        return [Counting()]


def test_what_privacy_has_cost_is_shown_where_there_is_a_ledger(dashboard, fcp_server, browser):
    plain = browser(dashboard()).log_in()
    assert ">Privacy</a>" not in plain.ask("/").text
    server = fcp_server(
        overrides={"pages": ["dashboard"], "admin.token": "a-token-of-the-tests"},
        extra=[DashboardPlugin(), CountingPlugin()],
    )
    somebody = browser(server).log_in()
    assert ">Privacy</a>" in somebody.ask("/").text
    assert "Nothing was released with noise." in text_of(somebody.ask("/privacy"))
    figures = {"privacy_spent": 0.75, "privacy_budget": 3.0}
    server._run(_notify(server, Released(1e9, "people", "id", "count", figures)))
    end = time.monotonic() + 60
    while "Nothing was released with" in (text := text_of(somebody.ask("/privacy"))):
        assert time.monotonic() < end
        time.sleep(0.1)  # what all look at may be a second old
    assert re.search(r"people 0.75 3 75 % 1 2001-09-09 01:46:40", text)
    assert "privacy_spent 0.75" in text_of(somebody.ask("/events?kind=Released"))


async def _notify(server, event):
    server.server.services._notify(event)
