"""The machine of one task, by events."""

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
    EndEffect,
    Group,
    InvalidTransition,
    KeptEffect,
    TaskMachine,
)
from fcp_core.rounds.tasks import TaskState


def machine(
    goal=2,
    minimum=None,
    over_selection=1.0,
    deadline=100.0,
    timeout=10.0,
    cap=None,
    retention=math.inf,
    first=120.0,
    wordless=False,
    alike=0,
):
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
        retention=retention,
        first_sign_timeout=first,
        wordless=wordless,
        alike_failures=alike,
    )


def assign(task, names, now=0.0):
    """Assign devices that start at once; return their records."""
    made = [task.assign(name, f"session-{name}", now) for name in names]
    for each in made:
        task.begin(each, now)
    return made


def queue(task, *assignments, now=1.0):
    group = Group(assignments, None, (b"checkpoint",))
    return group, task.queue(group, now)


def contribute(task, assignment, now=1.0):
    group, effects = queue(task, assignment, now=now)
    assert effects == [AccumulateEffect(group)]
    return task.accumulated(group, Code.OK, "", now)


def dropped(effects):
    return {e.assignment.id: (e.phase, e.code) for e in effects if isinstance(e, DroppedEffect)}


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


# Several contributions as one.


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


# Devices that are silent.


def test_a_silent_device_s_place_is_given_away_and_it_counts_all_the_same():
    task = machine(goal=1, first=4.0, timeout=10.0)
    silent = task.assign("silent", "", 0.0, version="2026")
    assert (task.capacity, task.next_tick()) == (0, 4.0)
    assert task.tick(4.0) == []
    assert silent.overdue
    assert (task.capacity, task.pending, task.at_work) == (1, 1, 0)
    assert dict(task.status().silent) == {"2026": 1}
    other = task.assign("other", "", 4.0)
    assert task.capacity == 0
    task.begin(silent, 6.0)
    assert (task.status().silent, task.awaited.experience.drop_outs < 0.11) == ({}, True)
    effects = contribute(task, silent, 6.0)
    # The other one is not needed any more, and not silent: it had no time yet.
    assert dropped(effects) == {"other": ("round_over", Code.ABORTED)}
    assert (task.contributed, task.surplus, task.silent) == (1, 1, 0)
    assert other.late
    task.validate()


def test_a_place_is_given_away_once_unless_silence_is_usual():
    for wordless, most in ((False, 4), (True, 6)):
        task = machine(goal=2, first=1.0, timeout=100.0, wordless=wordless)
        given_ = 0
        for second in range(3):
            while task.capacity:
                task.assign(f"d{given_}", "", float(second))
                given_ += 1
            task.tick(second + 1.0)
        assert given_ == most
        task.validate()


def test_silence_ends_at_the_assignment_timeout_and_is_no_lateness_at_the_task_s_end():
    task = machine(goal=2, over_selection=4.0, first=4.0, timeout=10.0)
    task.assign("early", "", 0.0, version="7")
    task.tick(4.0)
    task.assign("late", "", 7.0)
    assert dropped(task.tick(10.0)) == {"early": ("silent", Code.DEADLINE_EXCEEDED)}
    task.tick(11.0)
    made = assign(task, ["a", "b"], 12.0)
    task.assign("busy", "", 12.0)
    contribute(task, made[0], 12.0)
    effects = contribute(task, made[1], 12.0)
    ends = dropped(effects)
    assert ends == {"late": ("silent", Code.ABORTED), "busy": ("round_over", Code.ABORTED)}
    # If it comes after all, it is no fault of its own.
    assert all(task.get(name).late for name in ends)
    assert (task.contributed, task.surplus, task.dropped, task.silent) == (2, 1, 2, 2)
    assert task.story() == (
        "5 devices were assigned: 2 contributed, 1 came too late, 0 dropped, 2 silent (client "
        "versions: 1 x 7, 1 x unknown)"
    )
    task.validate()


def test_devices_that_time_out_without_a_sign_are_silent_even_before_they_are_overdue():
    task = machine(goal=2, first=50.0, timeout=10.0)
    task.assign("a", "", 0.0)
    assign(task, "b", 0.0)
    ends = dropped(task.tick(10.0))
    assert {name: phase for name, (phase, _) in ends.items()} == {
        "a": "silent", "b": "assignment_timeout"
    }  # fmt: skip
    assert (task.dropped, task.silent, task.capacity) == (2, 1, 2)


def test_a_task_ends_early_when_its_first_devices_all_fail_alike():
    task = machine(goal=5, alike=3)
    assign(task, "abc")
    for name in "ab":
        ends = task.drop(name, "computation", Code.INTERNAL, "it failed", 1.0)
        assert [type(effect) for effect in ends] == [DroppedEffect]
    *_, end = task.drop("c", "computation", Code.INTERNAL, "it failed", 1.0)
    assert end == EndEffect(
        TaskState.FAILED,
        Code.INTERNAL,
        "task task ended early, since its first 3 devices all failed alike (computation INTERNAL: "
        "it failed); 3 devices were assigned: 0 contributed, 0 came too late, 3 dropped (3 x "
        "computation INTERNAL), 0 silent",
    )


def test_the_server_s_own_words_on_what_it_cannot_accumulate_are_in_the_message():
    task = machine(goal=5, alike=2)
    for name in "ab":
        (one,) = assign(task, name)
        group, _ = queue(task, one)
        effects = task.accumulated(group, Code.INVALID_ARGUMENT, "shape [3], not [2]", 1.0)
    assert effects[-1].code is Code.INVALID_ARGUMENT
    assert "2 x submit INVALID_ARGUMENT: shape [3], not [2]" in effects[-1].message


def test_a_task_with_a_contribution_does_not_end_early():
    task = machine(goal=9, alike=2)
    one, *_ = assign(task, "abcdef")
    contribute(task, one)
    for name in "bcdef":
        task.drop(name, "computation", Code.INTERNAL, "", 1.0)
    assert task.state is TaskState.OPEN


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
