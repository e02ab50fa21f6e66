"""The machine of one task, by events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.task_machine import (
    CompleteEffect,
    EndEffect,
    FoldAssignment,
    InvalidTransition,
    ReleaseAssignment,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskState


def machine(goal=2, minimum=None, over_selection=1.0, deadline=100.0, timeout=10.0, cap=None):
    return TaskMachine(
        task_id="t",
        population="p",
        name="task",
        goal_count=goal,
        minimum_count=minimum,
        over_selection=over_selection,
        created=0.0,
        deadline=deadline,
        assignment_timeout=timeout,
        max_at_work=cap,
    )


def contribute(task, assignment, now=1.0):
    assert task.submit(assignment, now) == [FoldAssignment(assignment)]
    return task.folded(assignment, Code.OK, "", now)


def test_capacity_is_a_multiple_of_what_is_missing():
    task = machine(goal=10, over_selection=1.1)
    assert task.capacity == 11
    for index in range(11):
        task.assign(str(index), 0.0)
    assert task.capacity == 0
    with pytest.raises(InvalidTransition):
        task.assign("one too many", 0.0)
    contribute(task, "0")
    assert (task.missing, task.pending, task.capacity) == (9, 10, 0)
    task.drop("1", "computation", Code.INTERNAL, "", 1.0)
    assert task.capacity == 1


def test_the_last_contribution_completes_and_lets_the_others_go():
    task = machine(goal=1, over_selection=3.0)
    for name in "abc":
        task.assign(name, 0.0)
    task.submit("a", 1.0)
    assert task.submit("b", 1.0) == []
    effects = task.folded("a", Code.OK, "", 2.0)
    assert {e.assignment for e in effects[:-1]} == {"b", "c"}
    assert {e.code for e in effects[:-1]} == {Code.ABORTED}
    assert effects[-1] == CompleteEffect()
    assert task.state is TaskState.CLOSING
    assert task.reported(Code.OK, "", 3.0) == [EndEffect(TaskState.COMPLETED, Code.OK, "")]
    assert (task.finished, task.error, task.dropped) == (3.0, None, 2)


def test_a_refused_contribution_makes_place_for_the_next_in_the_queue():
    task = machine(goal=1, over_selection=2.0)
    task.assign("a", 0.0)
    task.assign("b", 0.0)
    task.submit("a", 1.0)
    task.submit("b", 1.0)
    effects = task.folded("a", Code.INVALID_ARGUMENT, "bad", 2.0)
    assert effects == [
        ReleaseAssignment("a", "submit", Code.INVALID_ARGUMENT, "bad"),
        FoldAssignment("b"),
    ]


def test_a_timeout_is_exact_and_does_not_hit_what_was_submitted():
    task = machine(goal=2)
    task.assign("a", 0.0)
    task.assign("b", 0.0)
    task.submit("b", 5.0)
    assert task.next_tick() == 10.0
    assert task.tick(9.999) == []
    (release,) = task.tick(10.0)
    assert (release.assignment, release.phase) == ("a", "assignment_timeout")
    assert task.next_tick() == 100.0
    with pytest.raises(StatusError) as caught:
        task.submit("a", 11.0)
    assert caught.value.code is Code.ABORTED


def test_the_deadline_waits_for_what_is_folding():
    task = machine(goal=3, minimum=1)
    for name in "abc":
        task.assign(name, 95.0)
    task.submit("a", 99.0)
    effects = task.tick(100.0)
    assert {e.assignment for e in effects} == {"b", "c"}
    assert task.next_tick() is None
    assert task.folded("a", Code.OK, "", 101.0) == [CompleteEffect()]


def test_the_deadline_says_what_was_missing_and_why():
    task = machine(goal=3, minimum=2)
    for name in "abc":
        task.assign(name, 95.0)
    task.submit("a", 99.0)
    task.drop("b", "computation", Code.INTERNAL, "", 99.0)
    task.tick(100.0)
    (release, end) = task.folded("a", Code.INVALID_ARGUMENT, "bad", 101.0)
    assert release.assignment == "a"
    assert (end.state, end.code) == (TaskState.FAILED, Code.DEADLINE_EXCEEDED)
    for part in ("0 of 2", "3 devices", "1 x computation INTERNAL", "1 x submit INVALID_ARGUMENT"):
        assert part in end.message


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.ABORTED])
def test_a_report_that_fails_fails_the_task(code):
    task = machine(goal=1)
    task.assign("a", 0.0)
    contribute(task, "a")
    assert task.reported(code, "why", 2.0) == [EndEffect(TaskState.FAILED, code, "why")]
    assert task.cancel(Code.CANCELLED, "late", 3.0) == []
    assert task.error == (code, "why")


def test_what_comes_after_a_cancellation_changes_nothing():
    task = machine(goal=2)
    task.assign("a", 0.0)
    task.assign("b", 0.0)
    task.submit("a", 1.0)
    effects = task.cancel(Code.CANCELLED, "enough", 2.0)
    assert {e.assignment for e in effects[:-1]} == {"a", "b"}
    assert task.folded("a", Code.OK, "", 3.0) == []
    assert task.drop("b", "aborted", Code.CANCELLED, "", 3.0) == []
    assert task.tick(1000.0) == []
    assert (task.contributed, task.dropped) == (0, 2)


class Model(RuleBasedStateMachine):
    """Devices that come, go, submit twice, late or never, against sets of names."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.task = None

    @precondition(lambda self: self.task is None)
    @rule(
        goal=st.integers(1, 4),
        over=st.sampled_from([1.0, 1.3, 3.0]),
        minimum=st.none() | st.just(1),
        cap=st.none() | st.integers(1, 3),
    )
    def open(self, goal, over, minimum, cap):
        self.task = machine(goal, minimum, over, cap=cap)
        self.names = [f"d{index}" for index in range(40)]
        self.at_work, self.submitted, self.folding = {}, [], set()
        self.done, self.gone = set(), set()
        self.completing = False
        self.end = None

    def take(self, effects):
        for effect in effects:
            if isinstance(effect, FoldAssignment):
                assert self.submitted.pop(0) == effect.assignment
                self.folding.add(effect.assignment)
            elif isinstance(effect, ReleaseAssignment):
                assert effect.assignment not in self.done | self.gone
                self.at_work.pop(effect.assignment, None)
                self.folding.discard(effect.assignment)
                if effect.assignment in self.submitted:
                    self.submitted.remove(effect.assignment)
                self.gone.add(effect.assignment)
            elif isinstance(effect, CompleteEffect):
                assert not self.completing
                assert not self.at_work
                assert not self.submitted
                assert not self.folding
                self.completing = True
            else:
                assert self.end is None
                self.end = effect

    started = precondition(lambda self: self.task is not None)

    @started
    @rule()
    def assign(self):
        if self.task.capacity and self.names:
            name = self.names.pop()
            self.task.assign(name, self.now)
            self.at_work[name] = self.now + 10.0

    @started
    @rule(data=st.data())
    def submit(self, data):
        known = sorted({*self.at_work, *self.submitted, *self.folding, *self.done, *self.gone})
        if not known:
            return
        name = data.draw(st.sampled_from(known))
        if name in self.at_work:
            del self.at_work[name]
            self.submitted.append(name)
            self.take(self.task.submit(name, self.now))
        else:
            with pytest.raises(StatusError):
                self.task.submit(name, self.now)

    @started
    @rule(data=st.data(), code=st.sampled_from([Code.OK, Code.OK, Code.INVALID_ARGUMENT]))
    def fold(self, data, code):
        if self.folding:
            name = data.draw(st.sampled_from(sorted(self.folding)))
            if code is Code.OK:
                self.folding.discard(name)
                self.done.add(name)
            self.take(self.task.folded(name, code, "", self.now))

    @started
    @rule(data=st.data())
    def drop(self, data):
        known = sorted({*self.at_work, *self.submitted, *self.folding, *self.done, *self.gone})
        if known:
            name = data.draw(st.sampled_from(known))
            effects = self.task.drop(name, "aborted", Code.INTERNAL, "", self.now)
            assert bool(effects) == (name in self.at_work or name in self.submitted)
            self.take(effects)

    @started
    @rule(seconds=st.floats(0, 30))
    def advance(self, seconds):
        self.now += seconds
        self.take(self.task.tick(self.now))
        # Whoever took too long is gone, and nobody else is.
        assert all(expires > self.now for expires in self.at_work.values())

    @started
    @rule()
    def jump_to_the_next_tick(self):
        when = self.task.next_tick()
        if when is not None:
            self.now = max(self.now, when)
            self.take(self.task.tick(self.now))
            after = self.task.next_tick()
            assert after is None or after > self.now

    @started
    @rule(code=st.sampled_from([Code.OK, Code.INTERNAL]))
    def report(self, code):
        if self.completing:
            self.take(self.task.reported(code, "", self.now))

    @started
    @rule()
    def cancel(self):
        if len(self.done) == 2:
            self.take(self.task.cancel(Code.CANCELLED, "", self.now))

    @invariant()
    def it_agrees(self):
        if self.task is None:
            return
        task = self.task
        task.validate()
        assert task.contributed == len(self.done) <= task.goal_count
        assert task.dropped == len(self.gone)
        assert task.pending == len(self.at_work) + len(self.submitted) + len(self.folding)
        assert task.state.is_final == (self.end is not None)
        if task.state is TaskState.OPEN:
            assert task.next_tick() is not None
        if self.end is not None and self.end.state is TaskState.COMPLETED:
            assert len(self.done) >= task.minimum_count


TestTaskMachineModel = Model.TestCase
TestTaskMachineModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
