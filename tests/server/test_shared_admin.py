"""What any member of a server answers for all of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fcp_core.admin.messages import ListQuery, Population, PopulationList, Task, TaskList
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.http import shared_admin
from fcp_core.server.http.shared_admin import OwnAdmin, SharedAdmin
from fcp_core.server.services.routing import Owner, RoutingTable

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


def members(owner, look=None):
    """Return what knows of one other member, and who owns a population; None: nobody."""
    owners = {} if owner is None else {mark_of("people"): Owner("people", owner, 1.0)}
    known = {mark_of("people"): "people"}
    table = RoutingTable(owners=owners, known=known, members={"other": THERE})
    found = SimpleNamespace(table=table, clock=SimpleNamespace(now=lambda: 0.0))
    found.in_touch, found.look = look is not None, look
    return found


class Taken:
    """Has one population from the second look on, which another member gives back."""

    def __init__(self, owner):
        self.looks, self.members = 0, members(owner, self.look)

    async def look(self):
        self.looks += 1
        if self.looks == 2:
            self.members.table = members("").table

    async def list_populations(self):
        mine = [one.url for one in self.members.table.owners.values()] == [""]
        return PopulationList([population("people")] if mine else [])


async def nothing(url, method, path, kind, body=b""):
    return PopulationList([])


@pytest.mark.parametrize("asked_by", ["a member", "an operator"])
def test_a_population_that_changes_hands_is_waited_for(asked_by):
    """Seen with an owner that had slept: a list in which its tasks were missing."""
    taken = Taken(None)
    own = OwnAdmin(taken, taken.members)
    shared = SharedAdmin(taken, taken.members, None)
    shared._ask = nothing
    found = asyncio.run((own if asked_by == "a member" else shared).list_populations())
    assert [each.name for each in found.populations] == ["people"]


def test_one_that_was_given_to_this_member_meanwhile_is_looked_for_again():
    taken = Taken(THERE)
    taken.looks = 1
    shared = SharedAdmin(taken, taken.members, None)
    shared._ask = nothing
    found = asyncio.run(shared.list_populations())
    assert ([each.name for each in found.populations], taken.looks) == (["people"], 3)


def test_one_that_nobody_takes_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(shared_admin, "SETTLED_TIME", 0.0)
    taken = Taken(None)
    assert asyncio.run(OwnAdmin(taken, taken.members).list_populations()).populations == []


@pytest.mark.parametrize(("owner", "state"), [(THERE, "completed"), ("", "open"), (None, "open")])
def test_of_a_population_that_changes_hands_the_owner_is_right(owner, state):
    """Seen with an owner that had slept: it knew of the task still, and listed it twice."""
    here = TaskList([task(1, "open"), task(3, "open", "mine")], total=9)
    there = TaskList([task(1, "completed"), task(2, "failed", "theirs")], total=4)

    class Here:
        async def list_tasks(self, query):
            return here

    admin = SharedAdmin(Here(), members(owner), None)

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

    admin = SharedAdmin(Here(), members(None), None)

    async def ask(url, method, path, kind, body=b""):
        return PopulationList([population("a"), population("c")])

    admin._ask = ask
    found = asyncio.run(admin.list_populations())
    assert [each.name for each in found.populations] == ["a", "b", "c", "d"]
