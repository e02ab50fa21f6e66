"""Several contributions that count as one, or not at all."""

import pytest

from fcp_core.protocol.status import Code
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    InvalidTransition,
    KeptEffect,
)
from tests.rounds.task_events import assign, dropped, machine, queue


def test_a_group_counts_for_all_and_may_exceed_the_goal():
    task = machine(goal=2, over_selection=2.0)
    made = assign(task, "abc")
    group, effects = queue(task, *made)
    assert effects == [AccumulateEffect(group)]
    assert task.accumulated(group, Code.OK, "", 2.0) == [CompleteEffect()]
    assert (task.contributed, task.missing) == (3, 0)


def test_a_group_is_refused_as_a_whole():
    task = machine(goal=2, over_selection=2.0)
    made = assign(task, "abc")
    group, _ = queue(task, *made)
    effects = task.accumulated(group, Code.INTERNAL, "bad", 2.0)
    assert dropped(effects) == dict.fromkeys("abc", ("submit", Code.INTERNAL))
    assert (task.contributed, task.dropped, task.capacity) == (0, 3, 4)


def test_one_of_a_group_that_waits_cannot_leave_it():
    task = machine(goal=1, over_selection=4.0)
    a, *others = assign(task, "abcd")
    first, _ = queue(task, a)
    waiting, effects = queue(task, *others[:2])
    assert effects == []
    assert task.drop("b", "aborted", Code.CANCELLED, "", 1.0) == []
    alone, _ = queue(task, others[2])
    assert set(dropped(task.drop("d", "aborted", Code.CANCELLED, "", 1.0))) == {"d"}
    effects = task.accumulated(first, Code.INTERNAL, "", 2.0)
    assert effects[-1] == AccumulateEffect(waiting)
    with pytest.raises(InvalidTransition):
        task.accumulated(alone, Code.OK, "", 2.0)


@pytest.mark.parametrize(
    "names", [[], ["a", "a"], ["a", "new"], ["a", "gone"], ["a", "queued"], ["a", "uploading"]]
)
def test_a_group_that_cannot_be_changes_nothing(names):
    task = machine(goal=9)
    made = {each.id: each for each in assign(task, ["a", "gone", "queued", "uploading"])}
    made["new"] = task.assign("new", "", 0.0)
    task.drop("gone", "aborted", Code.CANCELLED, "", 0.0)
    made["uploading"].begin_upload("x", 0.0)
    queue(task, made["queued"])
    before = {name: each.state for name, each in made.items()}
    with pytest.raises(InvalidTransition):
        queue(task, *(made[name] for name in names))
    assert {name: each.state for name, each in made.items()} == before
    task.validate()


def test_who_is_kept_does_not_expire_and_only_a_drop_of_its_own_drops_it():
    task = machine(goal=2)
    first, second = assign(task, ["a", "b"])
    (effect,) = task.keep(["a"], 1.0)
    assert effect == KeptEffect(first)
    assert not first.begin_upload("x", 2.0)
    assert [e.assignment for e in task.tick(11.0)] == [second]
    (effect,) = task.drop("a", "cohort", Code.ABORTED, "too few are left", 12.0)
    assert effect.assignment is first
    task.validate()


def test_who_is_kept_comes_too_late_if_the_task_ends():
    task = machine(goal=2, minimum=1)
    kept, other = assign(task, ["a", "b"])
    task.keep(["a"], 1.0)
    group, _ = queue(task, other)
    task.accumulated(group, Code.OK, "", 2.0)
    effects = task.tick(100.0)
    assert effects[0].assignment is kept
    assert kept.late
    assert isinstance(effects[1], CompleteEffect)


def test_a_task_gives_places_to_as_many_as_must_be_at_work_together():
    task = machine(goal=5)
    task.together = 4
    made = assign(task, "abcde")
    group, _ = queue(task, *made[:3])
    task.accumulated(group, Code.OK, "", 2.0)
    # Two are missing, but no fewer than four can contribute.
    assert task.missing == 2
    assert task.capacity == 2
    group, _ = queue(task, *made[3:])
    task.accumulated(group, Code.OK, "", 3.0)
    assert task.capacity == 0
    capped = machine(goal=5, cap=3)
    capped.together = 4
    assert capped.capacity == 3
