"""What the pages say, over HTTP, of a server with real devices."""

import gzip
import json
import re
import time

import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.testing.servers import query_task

VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))


def text_of(answer):
    """Return a page as it is read, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text)).replace("\u202f", " ")


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
    for odd in ("0", "-1", "x", "9999999999999999999999", "²"):
        assert somebody.ask(f"/?page={odd.encode().hex() if odd == '²' else odd}").status == 200
    assert "There is no such task." in text_of(somebody.ask("/tasks?state=ended"))


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
