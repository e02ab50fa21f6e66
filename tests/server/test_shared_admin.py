"""What any member of a server answers for all of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fcp_core.admin.messages import ListQuery, Population, PopulationList, Task, TaskList
from fcp_core.server.http.shared_admin import SharedAdmin
from fcp_core.server.services.routing import Owner

THERE = "http://there:1/"


def task(number, state, population="people"):
    counts = dict.fromkeys(
        ("goal_count", "assigned", "contributed", "pending", "dropped", "surplus"), 0
    )
    return Task(
        task_id=f"t{number}",
        population=population,
        name="n",
        state=state,
        created=float(number),
        finished=None,
        error=None,
        **counts,
    )


def population(name):
    counts = dict.fromkeys(("open_tasks", "missing", "waiting", "at_work"), 0)
    return Population(name=name, check_in_rate=0.0, **counts)


@pytest.mark.parametrize(("owner", "state"), [(THERE, "completed"), ("", "open"), (None, "open")])
def test_of_a_population_that_changes_hands_the_owner_is_right(owner, state):
    """Seen with an owner that had slept: it knew of the task still, and listed it twice."""
    here = TaskList([task(1, "open"), task(3, "open", "mine")], total=9)
    there = TaskList([task(1, "completed"), task(2, "failed", "theirs")], total=4)

    class Here:
        async def list_tasks(self, query):
            return here

    table = SimpleNamespace(
        holders=lambda: [THERE],
        owner=lambda mark, clock: None if owner is None else Owner("people", owner, 1.0),
    )
    admin = SharedAdmin(Here(), SimpleNamespace(table=table, clock=None), None)

    async def ask(url, method, path, kind, body=b""):
        assert (url, method, path) == (THERE, "GET", "/tasks?newest=3")
        return there

    admin._ask = ask
    found = asyncio.run(admin.list_tasks(ListQuery(newest=3)))
    assert [(each.task_id, each.state) for each in found.tasks] == [
        ("t1", state),
        ("t2", "failed"),
        ("t3", "open"),
    ]
    assert found.total == 12


def test_populations_of_all_members_are_listed_by_name():
    class Here:
        async def list_populations(self):
            return PopulationList([population("b"), population("d")])

    table = SimpleNamespace(holders=lambda: [THERE], owner=lambda mark, clock: None)
    admin = SharedAdmin(Here(), SimpleNamespace(table=table, clock=None), None)

    async def ask(url, method, path, kind, body=b""):
        return PopulationList([population("a"), population("c")])

    admin._ask = ask
    found = asyncio.run(admin.list_populations())
    assert [each.name for each in found.populations] == ["a", "b", "c", "d"]
