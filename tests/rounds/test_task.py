"""The machine of one task, by events."""

import pytest

from fcp_core.protocol.status import Code
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    EndEffect,
    InvalidTransition,
)
from fcp_core.rounds.tasks import TaskState
from tests.rounds.task_events import assign, contribute, dropped, machine, queue


def test_capacity_is_a_multiple_of_what_is_missing():
    task = machine(goal=10, over_selection=1.1)
    assert task.capacity == 11
    made = assign(task, [str(index) for index in range(11)])
    assert task.capacity == 0
    with pytest.raises(InvalidTransition):
        task.assign("one too many", "", 0.0)
    contribute(task, made[0])
    assert (task.missing, task.pending, task.capacity) == (9, 10, 0)
    task.drop("1", "computation", Code.INTERNAL, "", 1.0)
    assert task.capacity == 1


def test_what_has_ended_is_forgotten_once_its_tokens_have_expired_and_counts_all_the_same():
    task = machine(goal=5, timeout=10.0, retention=20.0)
    one, two = assign(task, "ab")
    contribute(task, one)
    task.drop("b", "aborted", Code.CANCELLED, "", 1.0)
    (late,) = assign(task, "c", now=29.0)
    assert task.all() == [one, two, late]
    assign(task, "d", now=30.0)
    assert [a.id for a in task.all()] == ["c", "d"]
    assert (task.assigned, task.contributed, task.dropped, task.pending) == (4, 1, 1, 2)
    assert task.get("a") is None
    task.validate()


def test_an_assignment_is_given_once_and_known_for_long():
    task = machine(goal=5)
    (one,) = assign(task, "a")
    with pytest.raises(InvalidTransition):
        task.assign("a", "", 0.0)
    assert task.get("a") is one
    task.drop("a", "aborted", Code.CANCELLED, "", 1.0)
    assert task.get("a") is one
    assert one.error.code is Code.CANCELLED
    with pytest.raises(InvalidTransition):
        task.assign("a", "", 2.0)
    assert (task.get("b"), task.all(), task.live(), task.assigned) == (None, [one], [], 1)


def test_the_last_contribution_completes_and_drops_the_others():
    task = machine(goal=1, over_selection=3.0)
    a, b, _ = assign(task, "abc")
    group, _ = queue(task, a)
    assert queue(task, b)[1] == []
    effects = task.accumulated(group, Code.OK, "", 2.0)
    assert dropped(effects) == dict.fromkeys("bc", ("round_over", Code.ABORTED))
    assert effects[-1] == CompleteEffect()
    assert task.state is TaskState.CLOSING
    assert task.reported(Code.OK, "", 3.0) == [EndEffect(TaskState.COMPLETED, Code.OK, "")]
    assert (task.finished, task.error, task.dropped, task.surplus) == (3.0, None, 0, 2)


def test_a_refused_contribution_makes_place_for_the_next_in_the_queue():
    task = machine(goal=1, over_selection=2.0)
    a, b = assign(task, "ab")
    first, _ = queue(task, a)
    second, _ = queue(task, b)
    effects = task.accumulated(first, Code.INVALID_ARGUMENT, "bad", 2.0)
    assert effects == [
        DroppedEffect(a, "submit", Code.INVALID_ARGUMENT, "bad"),
        AccumulateEffect(second),
    ]
    assert (a.error.code, a.error.message) == (Code.INVALID_ARGUMENT, "bad")


@pytest.mark.parametrize(("minimum", "state"), [(1, TaskState.CLOSING), (2, TaskState.FAILED)])
def test_a_task_that_can_keep_no_more_contributions_ends(minimum, state):
    task = machine(goal=3, minimum=minimum)
    first, *others = assign(task, "abc")
    contribute(task, first)
    effects = []
    for group in [queue(task, each)[0] for each in others]:
        effects += task.accumulated(group, Code.RESOURCE_EXHAUSTED, "max_kept_bytes is 12", 2.0)
    assert task.state is state
    if state is TaskState.CLOSING:
        assert CompleteEffect() in effects
    else:
        code, message = task.error
        assert code is Code.RESOURCE_EXHAUSTED
        assert "1 of 2 contributions: max_kept_bytes is 12" in message
    task.validate()


def test_a_timeout_is_exact_and_does_not_hit_what_is_ready():
    task = machine(goal=2)
    a, b = assign(task, "ab")
    queue(task, b, now=5.0)
    assert task.next_tick() == 10.0
    assert task.tick(9.999) == []
    (effect,) = task.tick(10.0)
    assert (effect.assignment, effect.phase) == (a, "assignment_timeout")
    assert task.next_tick() == 100.0
    with pytest.raises(InvalidTransition):
        queue(task, a, now=11.0)


def test_the_deadline_waits_for_what_is_accumulating():
    task = machine(goal=3, minimum=1)
    a, *_ = assign(task, "abc", 95.0)
    group, _ = queue(task, a, now=99.0)
    assert set(dropped(task.tick(100.0))) == {"b", "c"}
    assert task.accumulated(group, Code.OK, "", 101.0) == [CompleteEffect()]


@pytest.mark.parametrize("reporting", [False, True])
def test_a_task_does_not_close_for_ever(reporting):
    task = machine(goal=3, minimum=1)
    a, *_ = assign(task, "abc", 95.0)
    group, _ = queue(task, a, now=99.0)
    task.tick(100.0)
    if reporting:
        task.accumulated(group, Code.OK, "", 101.0)
    assert task.next_tick() == 700.0
    assert task.tick(699.9) == []
    end = task.tick(700.0)[-1]
    assert (end.state, end.code) == (TaskState.FAILED, Code.DEADLINE_EXCEEDED)
    assert "of the engine until 600 s after its deadline" in end.message
    task.validate()
    assert task.next_tick() is None
    assert task.accumulated(group, Code.OK, "", 701.0) == []
    assert task.reported(Code.OK, "", 701.0) == []


def test_the_deadline_says_what_was_missing_and_why():
    task = machine(goal=3, minimum=2)
    a, *_ = assign(task, "abc", 95.0)
    group, _ = queue(task, a, now=99.0)
    task.drop("b", "computation", Code.INTERNAL, "", 99.0)
    task.tick(100.0)
    (effect, end) = task.accumulated(group, Code.INVALID_ARGUMENT, "bad", 101.0)
    assert effect.assignment is a
    assert (end.state, end.code) == (TaskState.FAILED, Code.DEADLINE_EXCEEDED)
    for part in ("0 of 2", "3 devices", "1 x computation INTERNAL", "1 x submit INVALID_ARGUMENT"):
        assert part in end.message


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.ABORTED])
def test_a_report_that_fails_fails_the_task(code):
    task = machine(goal=1)
    contribute(task, *assign(task, "a"))
    message = "the engine gave no result: why" if code is Code.INTERNAL else "why"
    assert task.reported(code, "why", 2.0) == [EndEffect(TaskState.FAILED, code, message)]
    assert task.cancel(Code.CANCELLED, "late", 3.0) == []
    assert task.error == (code, message)


def test_a_result_that_nobody_asked_for_is_refused():
    with pytest.raises(InvalidTransition):
        machine().reported(Code.OK, "", 1.0)


def test_what_comes_after_a_cancellation_changes_nothing():
    task = machine(goal=2)
    a, _ = assign(task, "ab")
    group, _ = queue(task, a)
    effects = task.cancel(Code.CANCELLED, "enough", 2.0)
    assert set(dropped(effects)) == {"a", "b"}
    assert effects[-1] == EndEffect(TaskState.CANCELLED, Code.CANCELLED, "enough")
    assert task.accumulated(group, Code.OK, "", 3.0) == []
    assert task.drop("b", "aborted", Code.CANCELLED, "", 3.0) == []
    assert task.tick(1000.0) == []
    assert task.fail(Code.INTERNAL, "", 3.0) == []
    assert (task.contributed, task.dropped, task.surplus) == (0, 0, 2)
