"""Any history of a task, against a plain model of it."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fcp_core.protocol.status import Code
from fcp_core.rounds.assignment import Stage
from fcp_core.rounds.task import (
    AccumulateEffect,
    CompleteEffect,
    DroppedEffect,
    Group,
    InvalidTransition,
    KeptEffect,
)
from fcp_core.rounds.tasks import TaskState
from tests.rounds.task_events import machine


class Model(RuleBasedStateMachine):
    """Devices that come, upload, go, come twice, late or never, alone or in groups."""

    @initialize(
        goal=st.integers(1, 4),
        over=st.sampled_from([1.0, 1.3, 3.0, None]),
        wordless=st.booleans(),
        minimum=st.none() | st.just(1),
        cap=st.none() | st.integers(1, 4),
        retention=st.sampled_from([0.0, math.inf]),
    )
    def open(self, goal, over, wordless, minimum, cap, retention):
        self.now = 0.0
        self.task = machine(
            goal, minimum, over, cap=cap, retention=retention, first=4.0, wordless=wordless
        )
        self.count = 0
        #: When those that are not ready expire; the groups that wait, in order, and that run.
        self.expires = {}
        self.waiting, self.running = [], []
        self.done, self.gone = set(), set()
        self.silent, self.kept = set(), set()
        self.largest = 1
        self.completing = False
        self.end = None

    def take(self, effects):
        for effect in effects:
            assert self.end is None
            if isinstance(effect, AccumulateEffect):
                assert self.waiting.pop(0) is effect.group
                assert (
                    sum(len(g.assignments) for g in self.running) + len(self.done)
                    < self.task.goal_count
                )
                self.running.append(effect.group)
            elif isinstance(effect, DroppedEffect):
                name = effect.assignment.id
                assert name not in self.done | self.gone
                assert effect.assignment.error.code is effect.code
                self.expires.pop(name, None)
                if effect.phase == "silent":
                    self.silent.add(name)
                self.kept.discard(name)
                for groups in (self.waiting, self.running):
                    groups[:] = [g for g in groups if effect.assignment not in g.assignments]
                effect.assignment.release()
                self.gone.add(name)
            elif isinstance(effect, KeptEffect):
                effect.assignment.release()
                self.kept.add(effect.assignment.id)
            elif isinstance(effect, CompleteEffect):
                assert not self.kept
                assert not self.completing
                assert not self.expires
                assert not self.waiting
                assert not self.running
                self.completing = True
            else:
                self.end = effect

    def known(self, data):
        if self.task.all():
            return data.draw(st.sampled_from(self.task.all()))
        return None

    @rule(starts=st.booleans())
    def assign(self, starts):
        name = f"d{self.count}"
        self.count += 1
        if self.task.capacity < 1:
            with pytest.raises(InvalidTransition):
                self.task.assign(name, "", self.now)
            return
        made = self.task.assign(name, "", self.now, ["somebody"], "7")
        self.expires[name] = self.now + 10.0
        if starts:
            self.task.begin(made, self.now)

    @rule(data=st.data())
    def begin(self, data):
        """A device shows itself; one that is overdue counts like any other."""
        one = self.known(data)
        if one is not None and one.state is Stage.ASSIGNED:
            self.task.begin(one, self.now)

    @rule(data=st.data(), ends=st.sampled_from(["finish", "abandon", "goes on"]))
    def upload(self, data, ends):
        one = self.known(data)
        if one is None or one.state in (Stage.ASSIGNED, Stage.DROPPED):
            return
        if one.begin_upload("x", self.now):
            if ends == "finish":
                one.finish_upload("x", b"body", self.now)
            elif ends == "abandon":
                one.abandon_upload("x")

    @rule(data=st.data(), size=st.integers(1, 3))
    def queue(self, data, size):
        members = [self.known(data) for _ in range(size)]
        if None in members:
            return
        group = Group(tuple(members), None, (b"x",))
        right = (Stage.STARTED, Stage.UPLOADED, Stage.KEPT)
        if (
            self.task.state is TaskState.OPEN
            and len(set(members)) == size
            and all(one.state in right for one in members)
        ):
            for one in members:
                self.expires.pop(one.id, None)
                self.kept.discard(one.id)
            self.waiting.append(group)
            self.largest = max(self.largest, size)
            self.take(self.task.queue(group, self.now))
        else:
            with pytest.raises(InvalidTransition):
                self.task.queue(group, self.now)

    @rule(data=st.data(), size=st.integers(1, 2))
    def keep(self, data, size):
        members = [self.known(data) for _ in range(size)]
        if None in members:
            return
        names = [one.id for one in members]
        right = (Stage.STARTED, Stage.UPLOADED)
        if len(set(members)) == size and all(one.state in right for one in members):
            for name in names:
                del self.expires[name]
            self.take(self.task.keep(names, self.now))
        else:
            with pytest.raises(InvalidTransition):
                self.task.keep(names, self.now)

    @rule(data=st.data(), code=st.sampled_from([Code.OK, Code.OK, Code.INVALID_ARGUMENT]))
    def accumulated(self, data, code):
        if self.running:
            group = data.draw(st.sampled_from(self.running))
            if code is Code.OK:
                self.running.remove(group)
                self.done |= {one.id for one in group.assignments}
            self.take(self.task.accumulated(group, code, "", self.now))

    @rule(data=st.data())
    def drop(self, data):
        one = self.known(data)
        if one is None:
            assert self.task.drop("nobody", "aborted", Code.INTERNAL, "", self.now) == []
            return
        alone = any(group.assignments == (one,) for group in self.waiting)
        effects = self.task.drop(one.id, "aborted", Code.INTERNAL, "", self.now)
        assert [effect.assignment for effect in effects] == (
            [one] if one.id in self.expires or one.id in self.kept or alone else []
        )
        self.take(effects)

    @rule(seconds=st.floats(0, 30))
    def advance(self, seconds):
        self.now += seconds
        self.take(self.task.tick(self.now))
        # Whoever took too long is gone, and nobody else is.
        assert all(expires > self.now for expires in self.expires.values())

    @rule()
    def jump_to_the_next_tick(self):
        when = self.task.next_tick()
        if when is not None:
            self.now = max(self.now, when)
            self.take(self.task.tick(self.now))
            after = self.task.next_tick()
            assert after is None or after > self.now

    @rule(code=st.sampled_from([Code.OK, Code.INTERNAL]))
    def report(self, code):
        if self.completing:
            self.take(self.task.reported(code, "", self.now))

    @rule(fails=st.booleans())
    def end_it(self, fails):
        if len(self.done) >= 2:
            end = self.task.fail if fails else self.task.cancel
            self.take(end(Code.CANCELLED, "", self.now))

    @invariant()
    def it_agrees(self):
        if not hasattr(self, "task"):
            return
        task = self.task
        task.validate()
        waiting = sum(len(group.assignments) for group in self.waiting)
        running = sum(len(group.assignments) for group in self.running)
        # Only groups exceed the goal, and by no more than all but one of them.
        assert task.contributed == len(self.done) <= task.goal_count + self.largest - 1
        known = {name: task.get(name) for name in self.gone if task.get(name) is not None}
        late = {n for n, record in known.items() if record.late and n not in self.silent}
        assert task.dropped + task.surplus == len(self.gone)
        assert task.silent == len(self.silent)
        quiet = [a for a in task.live() if a.overdue and a.state is Stage.ASSIGNED]
        assert dict(task.awaited.silences.items()).get("7", 0) == task.silent + len(quiet)
        assert task.awaited.overdue == sum(a.overdue for a in task.live())
        assert len(late) <= task.surplus <= len(late) + len(self.gone) - len(known)
        assert all(known[name].error.code is Code.ABORTED for name in late)
        ready = waiting + running + len(self.kept)
        assert task.pending == len(self.expires) + ready == len(task.live())
        assert task.state.is_final == (self.end is not None)
        if task.state is TaskState.OPEN:
            assert task.next_tick() is not None
        if self.end is not None and self.end.state is TaskState.COMPLETED:
            assert len(self.done) >= task.minimum_count
        view, status = task.view(), task.status()
        assert (view.capacity, view.missing, view.pending) == (
            task.capacity, task.missing, task.at_work
        )  # fmt: skip
        ended = status.contributed + status.dropped + status.surplus
        assert status.assigned == ended + status.pending


TestTaskMachineModel = Model.TestCase
TestTaskMachineModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_after_a_tick_nobody_is_overdue_already():
    """Who is dropped for being late leaves less patience with the others who are silent."""
    model = Model()
    model.open(goal=1, over=1.3, wordless=False, minimum=None, cap=None, retention=0.0)
    model.assign(starts=False)
    model.jump_to_the_next_tick()
    model.jump_to_the_next_tick()
    model.assign(starts=False)
    model.assign(starts=True)
    model.jump_to_the_next_tick()
    model.jump_to_the_next_tick()
    model.assign(starts=True)
    model.jump_to_the_next_tick()
    model.assign(starts=False)
    model.jump_to_the_next_tick()
