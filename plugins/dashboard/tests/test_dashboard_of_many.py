"""A server of several processes, or several members, is shown as one."""

import json
import time

import pytest

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins import hookimpl
from fcp_core.storage.contract import StorageFactory
from fcp_core.testing.servers import query_task
from fcp_dashboard.plugin import DashboardPlugin
from fcp_plugins.storage_sqlite import SqliteStorage

TOKEN = "a-token-of-the-tests"
VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))


class SharedSqlite(SqliteStorage):
    """Members take turns on one file, as they do in a database: quick to make."""

    shared = True


class SharedStorage:
    def __init__(self, path):
        self._path = path

    @hookimpl
    def fcp_register_storages(self):
        make = lambda options: SharedSqlite(self._path)  # noqa: E731
        return [StorageFactory("shared", "an SQLite file that members share", make)]


@pytest.fixture
def member(fcp_server, tmp_path):
    def start():
        return fcp_server(
            overrides={"storage": "shared", "admin.token": TOKEN, "pages": ["dashboard"]},
            extra=[SharedStorage(tmp_path / "shared.sqlite"), DashboardPlugin()],
            populations=(),
        )

    return start


def until(condition):
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def snapshot(somebody):
    return json.loads(somebody.ask("/snapshot.json").body)


@pytest.mark.slow
def test_each_member_shows_what_all_saw(member, browser, fcp_client):
    one, two = member(), member()
    first, second = browser(one).log_in(), browser(two)
    second.cookie = first.cookie  # a login holds at each member
    names = [f"p{number}" for number in range(8)]

    def both_listed():
        found = [snapshot(each) for each in (first, second)]
        return all(len(each["members"]) == 2 and not each["problem"] for each in found)

    for name in names:
        with AdminClient(one.url, TOKEN) as admin:
            admin.submit(query_task(SUM, population=name))
    until(both_listed)
    for name in names:
        with fcp_client(one, {"v": [1, 2]}, population=name) as device:
            until(lambda device=device: device.run_once().outcome.value == "contributed")

    def all_seen(somebody):
        members = snapshot(somebody)["members"]
        seen = [task for each in members for task in each["tasks"] if task["contributed"]]
        return sorted(task["population"] for task in seen) == names

    for somebody in (first, second):
        until(lambda somebody=somebody: all_seen(somebody))


def test_a_link_holds_at_another_member(member, browser):
    one, two = member(), member()
    somebody = browser(one)
    made = somebody.ask("/link", method="POST", authorization=f"Bearer {TOKEN}")
    word = json.loads(made.body)["path"].partition("link=")[2]
    answers = [browser(two).ask("/login", form={"link": word}).status for _ in range(2)]
    assert answers == [303, 403]


@pytest.mark.slow
def test_a_page_that_a_worker_receives_is_that_of_the_server(fcp_server, browser):
    """Connections come to any of the processes; only one of them knows."""
    server = fcp_server(
        overrides={
            "plugins": "fcp_dashboard.plugin:DashboardPlugin",
            "pages": ["dashboard"],
            "admin.token": TOKEN,
        },
        processes=2,
    )
    task_id = server.submit(query_task(SUM))
    somebody = browser(server).log_in()
    form = {"form_token": somebody.form_token()}
    pids = set()
    for _ in range(30):
        found = snapshot(somebody)
        assert [task["task_id"] for task in found["tasks"]] == [task_id]
        pids |= {each["pid"] for each in found["members"]}
    assert len(pids) == 1
    assert somebody.ask("/logout", form=form).status == 303
