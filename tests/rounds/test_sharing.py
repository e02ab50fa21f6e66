"""One sender's silent places, when devices of others want them."""

import pytest

from fcp_core.rounds.experience import Experiences
from fcp_core.rounds.sharing import share_places
from tests.rounds.task_events import contribute, machine

A, B = ("address A",), ("address B",)


def held(holders, limit=10, **how):
    """Make a task whose places have these holders; they give no sign."""
    task = machine(**{"goal": len(holders)} | how)
    task.share(Experiences(limit))
    for number, origin in enumerate(holders):
        task.assign(str(number), "", float(number), origin)
    assert not task.capacity
    return task


def share(task, origin, now=10.0):
    """Return whether a device of that origin finds a place."""
    share_places(task, origin, lambda: task.capacity > 0, now)
    task.validate()
    return task.capacity > 0


@pytest.mark.parametrize("how", [{}, {"goal": 100, "cap": 4}])
def test_others_get_half_of_the_places_of_one_who_holds_all(how):
    task = held([A] * 4, **how)
    for number in range(2):
        assert share(task, B)
        assert task.get(str(number)).overdue  # the oldest first
        task.assign(f"b{number}", "", 10.0, B)
    # Two of the four are A's share.
    assert not share(task, ("address C",))
    assert (task.pending, task.at_work) == (6, 4)
    # It contributes like any other.
    first = task.get("0")
    task.begin(first, 11.0)
    contribute(task, first, 11.0)
    assert (task.contributed, first.overdue) == (1, False)


@pytest.mark.parametrize(
    ("holders", "origin"),
    [
        ([A] * 4, A),  # It has its share.
        ([A] * 4, ()),  # What tells nobody apart.
        ([A, A, B, ("address C",)], ("address D",)),  # Half is no more than a share.
        ([A], B),  # Neither is one.
        ([A + B] * 4, B + A),
    ],
)
def test_nobody_gives_way_to(holders, origin):
    assert not share(held(holders), origin)


def test_a_key_that_all_have_is_nobody_s_and_one_at_the_same_address_counts():
    key, other = ("key k",), ("key l",)
    assert share(held([A + key] * 4), B + key)
    assert share(held([A + key] * 4), A + other)


def test_who_has_contributed_as_much_does_not_give_way():
    task = held([A] * 4)
    task.awaited.senders.later += [A] * 4
    assert not share(task, B)
    less = held([A] * 4)
    less.awaited.senders.later += [A] * 3
    assert share(less, B)


def test_without_a_limit_on_senders_places_are_not_shared():
    assert not share(held([A] * 4, limit=0), B)


def test_places_are_given_away_once_unless_silence_is_usual():
    for wordless, most in ((False, 4), (True, 6)):
        task = held([A] * 4, wordless=wordless)
        for number in range(6):
            if share(task, B):
                task.assign(f"b{number}", "", 10.0, ("address A",))
        assert task.pending - 4 == most


def test_many_places_are_not_looked_at_for_every_device():
    task = held([A] * 200, deadline=1e6, timeout=1e6)
    assert share(task, B)
    task.assign("b", "", 10.0, B)
    assert not share(task, B, 10.0)
    assert share(task, B, 10.1)
