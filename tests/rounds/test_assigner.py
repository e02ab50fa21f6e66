"""Who gets which task, with policies good and bad.

A device is named after its candidate, in upper case: policies see the one, the outcome has the
other.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.rounds.assigner import Assigned, Assigner, CandidateState, Waiting
from fcp_core.rounds.machine import InvalidTransition
from fcp_core.rounds.policies import (
    Assign,
    Candidate,
    OpenTask,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
)


class Scripted(SelectionPolicy):
    """Decides what it is told to, and keeps what it was shown."""

    def __init__(self, decide):
        self.decide = decide
        self.views = []

    def select(self, view):
        self.views.append(view)
        answer = self.decide(view)
        return answer if isinstance(answer, Selection) else Selection(answer)


def fifo(view):
    room = {task.task_id: task.capacity for task in view.tasks}
    decisions = []
    for candidate in view.candidates:
        for task in view.tasks:
            if room[task.task_id] and candidate.eligible(task.name):
                room[task.task_id] -= 1
                decisions.append(Assign(candidate.id, task.task_id))
                break
    return decisions


def task(task_id="t", name="n", capacity=1):
    return OpenTask(task_id, name, capacity, capacity, 0.0)


def assigner(policy, *tasks, group="g"):
    made = Assigner(random.Random(0))
    for each in tasks:
        made.open(each.task_id, group, "scripted", policy, {"x": 1})
    return made


def test_candidates_without_a_task_are_rejected_at_once_and_policies_not_asked():
    policy = Scripted(fifo)
    made = assigner(policy, task(capacity=0))
    made.arrive(Candidate("a", 0.0), "A")
    outcome = made.decide([task(capacity=0)], 1.0)
    assert [(r.device, r.reason) for r in outcome.rejected] == [("A", "no_task")]
    made.arrive(Candidate("b", 0.0, {"n": 0.0}), "B")
    assert [r.device for r in made.decide([task()], 1.0).rejected] == ["B"]
    assert policy.views == []
    assert made.waiting == 0


def test_who_finds_no_room_after_the_others_is_rejected_too():
    policy = Scripted(fifo)
    made = assigner(policy, task())
    made.arrive(Candidate("a", 0.0), "A")
    made.arrive(Candidate("b", 0.0), "B")
    outcome = made.decide([task()], 1.0)
    assert outcome.assigned == [Assigned("A", "t")]
    assert [(r.device, r.reason) for r in outcome.rejected] == [("B", "no_task")]


def test_who_is_held_stays_and_the_policy_is_asked_when_it_wishes():
    policy = Scripted(lambda view: Selection((), {"seen": len(view.candidates)}, 5.0))
    made = assigner(policy, task())
    made.arrive(Candidate("a", 0.0), "A")
    outcome = made.decide([task()], 1.0)
    assert (outcome.assigned, outcome.rejected) == ([], [])
    assert made.next_tick() == 6.0
    made.decide([task()], 6.0)
    assert [view.state for view in policy.views] == [None, {"seen": 1}]
    assert policy.views[0].options == {"x": 1}
    assert made.withdraw("a") == "A"
    assert made.withdraw("a") is None
    assert made.next_tick() is None


def test_a_policy_that_is_not_asked_any_more_has_no_tick():
    waiting = Scripted(lambda view: Selection((), None, 5.0))
    holding = Scripted(lambda view: [])
    made = assigner(waiting, task("t1"), group="g1")
    made.open("t2", "g2", "holding", holding, {})
    made.arrive(Candidate("a", 0.0), "A")
    made.decide([task("t1"), task("t2")], 1.0)
    assert made.next_tick() == 6.0
    made.decide([task("t1", capacity=0), task("t2")], 6.0)
    assert made.next_tick() is None
    assert made.waiting == 1


def test_what_a_policy_keeps_outlives_its_task():
    policy = Scripted(lambda view: Selection([Assign("a", view.tasks[0].task_id)], "kept"))
    made = assigner(policy, task("t1"))
    for name in ("t1", "t2"):
        made.open(name, "g", "scripted", policy, {})
        made.arrive(Candidate("a", 0.0), "A")
        made.decide([task(name)], 1.0)
        made.close(name)
    assert [view.state for view in policy.views] == [None, "kept"]


def test_a_policy_that_asks_for_no_pause_gets_one():
    policy = Scripted(lambda view: Selection((), None, 0.0))
    made = assigner(policy, task())
    made.arrive(Candidate("a", 0.0), "A")
    made.decide([task()], 1.0)
    assert made.next_tick() > 1.0


def test_a_rejection_counts_if_no_other_policy_holds_the_candidate():
    window = RetryWindow(1, 2)
    rejecting = Scripted(lambda view: [Reject(c.id, window) for c in view.candidates])
    holding = Scripted(lambda view: [])
    made = assigner(rejecting, task("t1"), group="g1")
    made.open("t2", "g2", "holding", holding, {})
    made.arrive(Candidate("both", 0.0), "BOTH")
    made.arrive(Candidate("first", 0.0, {"n": 1.0}), "FIRST")
    tasks = [task("t1"), task("t2", "other")]
    outcome = made.decide(tasks, 1.0)
    assert [(r.device, r.reason, r.retry) for r in outcome.rejected] == [
        ("FIRST", "not_selected", window)
    ]
    assert made.waiting == 1
    made.close("t2")
    outcome = made.decide([task("t1")], 2.0)
    assert [r.device for r in outcome.rejected] == ["BOTH"]


@pytest.mark.parametrize(
    ("decisions", "hint"),
    [
        ([Assign("stranger", "t")], "does not wait"),
        ([Assign("a", "t"), Assign("a", "t")], "decided about before"),
        ([Assign("a", "closed")], "not open"),
        ([Assign("picky", "t")], "not eligible"),
        ([Assign("a", "t"), Assign("b", "t"), Assign("c", "t")], "full"),
    ],
)
def test_a_decision_that_cannot_be_right_is_told_and_ignored(decisions, hint):
    made = assigner(Scripted(lambda view: decisions), task(capacity=2), task("u", "other", 1))
    for name in "abc":
        made.arrive(Candidate(name, 0.0), name.upper())
    made.arrive(Candidate("picky", 0.0, {"other": 1.0}), "PICKY")
    outcome = made.decide([task(capacity=2), task("u", "other", 1)], 1.0)
    (problem,) = outcome.problems
    assert hint in problem
    assert "scripted" in problem
    good = [
        Assigned(d.candidate.upper(), d.task_id)
        for d in dict.fromkeys(decisions)
        if (d.candidate, d.task_id) in {("a", "t"), ("b", "t")}
    ]
    assert outcome.assigned == good


def test_a_policy_that_raises_is_told_and_everybody_waits():
    made = assigner(Scripted(lambda view: 1 / 0), task())
    made.arrive(Candidate("a", 0.0), "A")
    outcome = made.decide([task()], 1.0)
    assert "ZeroDivisionError" in outcome.problems[0]
    assert made.waiting == 1


NAMES = ["n1", "n2", "n3"]


@settings(deadline=None)
@given(
    st.lists(st.none() | st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 1.0]))),
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_whatever_a_policy_says_nobody_is_assigned_wrongly(candidates, shapes, rng):
    tasks = [task(f"t{i}", name, capacity) for i, (name, capacity) in enumerate(shapes)]

    def wild(view):
        ids = [c.id for c in view.candidates] + ["stranger"]
        choices = [Assign(rng.choice(ids), rng.choice(tasks).task_id) for _ in range(6)]
        return [*choices, *(Reject(rng.choice(ids)) for _ in range(2))]

    made = assigner(Scripted(wild), *tasks)
    known = {}
    for index, weights in enumerate(candidates):
        known[f"c{index}"] = Candidate(f"c{index}", 0.0, weights)
        made.arrive(known[f"c{index}"], f"C{index}")
    outcome = made.decide(tasks, 1.0)
    left = [a.device for a in outcome.assigned] + [r.device for r in outcome.rejected]
    assert len(left) == len(set(left))
    assert made.waiting == len(known) - len(left)
    for each in tasks:
        given_to = [a.device.lower() for a in outcome.assigned if a.task_id == each.task_id]
        assert len(given_to) <= each.capacity
        assert all(known[candidate].eligible(each.name) for candidate in given_to)


# A limit on all tasks together.


def test_a_limit_holds_for_all_policies_together_and_the_rest_is_turned_away():
    made = Assigner(random.Random(0))
    for group in "gh":
        made.open(f"t{group}", group, "scripted", Scripted(fifo), {})
    for name in "abcde":
        made.arrive(Candidate(name, 0.0), name.upper())
    outcome = made.decide([task("tg", capacity=2), task("th", capacity=9)], 1.0, 3)
    assert [a.task_id for a in outcome.assigned] == ["tg", "tg", "th"]
    assert [r.reason for r in outcome.rejected] == ["no_task"] * 2
    made.arrive(Candidate("f", 0.0), "F")
    outcome = made.decide([task("tg", capacity=2)], 1.0, 0)
    assert (outcome.assigned, len(outcome.rejected)) == ([], 1)


def test_the_last_place_goes_to_the_policy_with_the_fewest_at_work():
    made = Assigner(random.Random(0))
    for group in "gh":
        made.open(f"t{group}", group, "scripted", Scripted(fifo), {})
    made.arrive(Candidate("a", 0.0), "A")
    busy = OpenTask("tg", "n", 9, 9, 0.0, pending=2)
    idle = OpenTask("th", "n", 9, 9, 0.0, pending=1)
    assert made.decide([busy, idle], 1.0, 1).assigned == [Assigned("A", "th")]


def test_a_policy_keeps_what_came_of_its_choice():
    def count(view):
        decisions = fifo(view)
        return Selection(decisions, (view.state or 0) + len(decisions))

    policy = Scripted(count)
    made = assigner(policy, task("t", capacity=5))
    for name in "abc":
        made.arrive(Candidate(name, 0.0), name.upper())
    assert len(made.decide([task("t", capacity=5)], 1.0, 2).assigned) == 2
    made.arrive(Candidate("d", 0.0), "D")
    made.decide([task("t", capacity=3)], 2.0, 2)
    assert [view.state for view in policy.views][-1] == 2


def test_a_policy_that_will_not_keep_to_the_limit_is_told_of():
    def stubborn(view):
        return [Assign(c.id, "t") for c in view.candidates]

    made = assigner(Scripted(stubborn), task("t", capacity=5))
    for name in "abc":
        made.arrive(Candidate(name, 0.0), name.upper())
    outcome = made.decide([task("t", capacity=5)], 1.0, 1)
    assert len(outcome.assigned) == 1
    assert len(outcome.problems) == 2


@settings(deadline=None)
@given(st.integers(0, 8), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 12))
def test_no_more_than_the_limit_and_no_fewer_than_possible(limit, capacities, devices):
    made = Assigner(random.Random(0))
    tasks = [task(f"t{i}", f"n{i}", capacity) for i, capacity in enumerate(capacities)]
    for i, each in enumerate(tasks):
        made.open(each.task_id, f"g{i % 2}", "scripted", Scripted(fifo), {})
    for i in range(devices):
        made.arrive(Candidate(f"c{i}", 0.0), f"C{i}")
    outcome = made.decide(tasks, 1.0, limit)
    assert len(outcome.assigned) == min(limit, sum(capacities), devices)
    assert len(outcome.assigned) + len(outcome.rejected) + made.waiting == devices


# Where a candidate stands.


def test_a_candidate_leaves_once_and_for_good():
    for state in (CandidateState.ASSIGNED, CandidateState.REJECTED, CandidateState.WITHDRAWN):
        waiting = Waiting(Candidate("a", 0.0), "A")
        assert waiting.state is CandidateState.WAITING
        waiting.move(state)
        for other in CandidateState:
            with pytest.raises(InvalidTransition):
                waiting.move(other)


def test_policies_never_see_devices():
    policy = Scripted(lambda view: [])
    made = assigner(policy, task())
    secret = object()
    made.arrive(Candidate("a", 0.0), secret)
    made.decide([task()], 1.0)
    (view,) = policy.views
    (candidate,) = view.candidates
    assert candidate == Candidate("a", 0.0)
    assert not any(getattr(candidate, name) is secret for name in dir(candidate))
    assert made.withdraw("a") is secret


def test_those_who_were_asked_nothing_are_restricted_and_the_others_are_not():
    made = assigner(Scripted(fifo), task())
    made.arrive(Candidate("any", 0.0), "ANY")
    made.arrive(Candidate("own", 0.0, {"n": 1.0}), "OWN")
    made.restrict({"other": 1.0})
    outcome = made.decide([task(capacity=2)], 1.0)
    assert outcome.assigned == [Assigned("OWN", "t")]
    assert [(r.device, r.reason) for r in outcome.rejected] == [("ANY", "no_task")]
