"""The selection kit passes correct policies and catches one that is broken on purpose, by law."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from fcp_core.rounds.policies import (
    Assign,
    Reject,
    RetryWindow,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
)
from fcp_core.testing import SelectionPolicyConformance
from fcp_core.testing.binomial import binomial_bounds


def assign(candidates, tasks, choose=lambda candidate, task: candidate.eligible(task.name)):
    """Give candidates, in turn, the first task that they may take."""
    room = {task.task_id: task.capacity for task in tasks}
    decisions = []
    for candidate in candidates:
        for task in tasks:
            if room[task.task_id] and choose(candidate, task):
                room[task.task_id] -= 1
                decisions.append(Assign(candidate.id, task.task_id))
                break
    return decisions


class Good(SelectionPolicy):
    """Draws at random, and counts its questions in the state."""

    def __init__(self, options=None):
        pass

    def select(self, view):
        return Selection(self.decide(view), self.next_state(view), self.tick_in(view))

    def decide(self, view):
        return assign(view.rng.sample(view.candidates, len(view.candidates)), view.tasks)

    def next_state(self, view):
        return {"asked": (view.state or {"asked": 0})["asked"] + 1}

    def tick_in(self, view):
        return 1.0 if view.candidates else None


class RejectsHalf(Good):
    """Correct too: it sends devices away, and waits in between."""

    def decide(self, view):
        if (view.state or {"asked": 0})["asked"] % 3 < 2:
            return []
        decisions = super().decide(view)
        assigned = {decision.candidate for decision in decisions}
        others = [c.id for c in view.candidates if c.id not in assigned]
        return [*decisions, *(Reject(name, RetryWindow(1.0, 2.0)) for name in others[::2])]


def kit(cls, max_examples=100, **changes):
    fields = {"name": "good", "summary": "draws", "make": cls}

    class Laws(SelectionPolicyConformance):
        factory = SelectionPolicyFactory(**(fields | changes))
        options: ClassVar = {"limit": [1]}
        fair = True
        patience = 7200.0
        shrink = False
        derandomize = True

    Laws.max_examples = max_examples
    return Laws


class TestGood(kit(Good, max_examples=5)):
    """The laws hold for a correct one, or what follows would prove nothing."""


@pytest.mark.slow
class TestRejectsHalf(kit(RejectsHalf, max_examples=5)):
    """And for one that uses all that a policy may do."""


class AboutStrangers(Good):
    def decide(self, view):
        return [*super().decide(view), Reject("nobody")]


class AboutOtherTasks(Good):
    def decide(self, view):
        return [Assign(candidate.id, "another") for candidate in view.candidates]


class Twice(Good):
    def decide(self, view):
        decisions = super().decide(view)
        return decisions + decisions[:1]


class OverFull(Good):
    def decide(self, view):
        return [Assign(c.id, t.task_id) for c in view.candidates for t in view.tasks[:1]]


class ForAnybody(Good):
    def decide(self, view):
        return assign(view.candidates, view.tasks, lambda candidate, task: True)


class TicksInThePast(Good):
    def tick_in(self, view):
        return -1.0


class RetriesBackwards(Good):
    def decide(self, view):
        return [Reject(candidate.id, RetryWindow(5.0, 1.0)) for candidate in view.candidates]


class OwnSeed(Good):
    def decide(self, view):
        return assign(random.Random().sample(view.candidates, len(view.candidates)), view.tasks)


class Remembers(Good):
    def __init__(self, options=None):
        self.asked = 0

    def decide(self, view):
        self.asked += 1
        return super().decide(view) if self.asked % 2 else []


class StateIsATuple(Good):
    def next_state(self, view):
        return (view.state or (0,))[0] + 1, "x"


class StateHasIntegerKeys(Good):
    def decide(self, view):
        return super().decide(view) if (view.state or {}).get(1, 0) % 2 == 0 else []

    def next_state(self, view):
        return {1: (view.state or {}).get(1, 0) + 1}


class ChangesTheState(Good):
    def next_state(self, view):
        state = view.state or {"asked": 0}
        state["asked"] += 1
        return state


class ChangesTheOptions(Good):
    def decide(self, view):
        view.options["limit"].append(1)
        return super().decide(view)


class ReadsAFile(Good):
    def decide(self, view):
        Path(__file__).read_bytes()
        return super().decide(view)


class Prints(Good):
    def decide(self, view):
        print("deciding")
        return super().decide(view)


class ReadsTheClock(Good):
    def tick_in(self, view):
        return 1.0 + 0 * time.monotonic()


class GlobalRandomness(Good):
    def decide(self, view):
        return assign(random.sample(view.candidates, len(view.candidates)), view.tasks)


class SystemRandomness(Good):
    def decide(self, view):
        random.SystemRandom().random()
        return super().decide(view)


class FirstInTheList(Good):
    def decide(self, view):
        return assign(view.candidates, view.tasks)


class LongestWaiting(Good):
    def decide(self, view):
        by_age = sorted(view.candidates, key=lambda c: (c.arrived, c.id))
        return assign(by_age, view.tasks)


class Holds(Good):
    def decide(self, view):
        return []


class HoldsTheLast(Good):
    """Gives all places but one, and so never finishes."""

    def decide(self, view):
        return super().decide(view)[: -1 if sum(t.capacity for t in view.tasks) < 2 else None]


class CountsOnThem(Good):
    """Thinks that whoever was assigned has taken part."""

    def decide(self, view):
        given = (view.state or {"given": {}})["given"]
        left = [t for t in view.tasks if given.get(t.task_id, 0) < t.missing]
        return super().decide(view) if left else []

    def select(self, view):
        decisions = self.decide(view)
        given = dict((view.state or {"given": {}})["given"])
        for decision in decisions:
            given[decision.task_id] = given.get(decision.task_id, 0) + 1
        return Selection(decisions, {"given": given}, 1.0)


class OnlyTheNewest(Good):
    """Leaves out the devices of all versions but one."""

    def decide(self, view):
        newest = [c for c in view.candidates if c.client_version == "v2024.2"]
        return assign(newest, view.tasks)


class OnlyTheEvaluated(Good):
    """Leaves out the devices that evaluated no policy."""

    def decide(self, view):
        return assign([c for c in view.candidates if c.weights is not None], view.tasks)


class NewestFirst(Good):
    """Leaves out the others only while there are enough of one version."""

    def decide(self, view):
        drawn = view.rng.sample(view.candidates, len(view.candidates))
        return assign(sorted(drawn, key=lambda c: c.client_version != "v2024.2"), view.tasks)


class NeedsSomebody(Good):
    def decide(self, view):
        view.rng.choice(view.candidates)
        return super().decide(view)


class Recurses(Good):
    def decide(self, view):
        def depth(candidates):
            return 1 + depth(candidates[1:]) if candidates else 0

        depth(view.candidates[: sys.getrecursionlimit() + 1])
        return super().decide(view)


BROKEN = [
    ("test_the_factory_describes_itself", Good, {"summary": ""}),
    ("test_the_factory_describes_itself", Good, {"make": lambda options: object()}),
    ("test_only_those_who_wait_are_decided_about", AboutStrangers, {}),
    ("test_only_those_who_wait_are_decided_about", AboutOtherTasks, {}),
    ("test_nobody_is_decided_about_twice", Twice, {}),
    ("test_no_task_gets_more_than_it_takes", OverFull, {}),
    ("test_no_task_is_given_to_a_device_that_is_not_eligible", ForAnybody, {}),
    ("test_waiting_times_are_times", TicksInThePast, {}),
    ("test_waiting_times_are_times", RetriesBackwards, {}),
    ("test_the_same_seed_gives_the_same_choice", OwnSeed, {}),
    ("test_nothing_is_kept_on_the_policy", Remembers, {}),
    ("test_the_state_survives_json", StateIsATuple, {}),
    ("test_the_state_survives_json", StateHasIntegerKeys, {}),
    ("test_what_it_is_shown_stays_as_it_was", ChangesTheState, {}),
    ("test_what_it_is_shown_stays_as_it_was", ChangesTheOptions, {}),
    ("test_it_does_no_input_or_output", ReadsAFile, {}),
    ("test_it_does_no_input_or_output", Prints, {}),
    ("test_it_reads_no_clock", ReadsTheClock, {}),
    ("test_it_uses_no_global_randomness", GlobalRandomness, {}),
    ("test_it_uses_no_global_randomness", SystemRandomness, {}),
    ("test_the_order_of_candidates_does_not_matter", FirstInTheList, {}),
    ("test_equal_devices_have_equal_chances", LongestWaiting, {}),
    ("test_equal_devices_have_equal_chances", NewestFirst, {}),
    ("test_no_kind_of_device_is_left_out", OnlyTheNewest, {}),
    ("test_no_kind_of_device_is_left_out", OnlyTheEvaluated, {}),
    ("test_a_round_is_filled", Holds, {}),
    ("test_a_round_is_filled", HoldsTheLast, {}),
    ("test_a_round_is_filled_although_devices_vanish", CountsOnThem, {}),
    ("test_empty_pools", NeedsSomebody, {}),
    ("test_a_huge_pool", Recurses, {}),
]


def name_of(value):
    """Name a parameter alike in every process: without the address of an object."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", value)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "cls", "changes"), BROKEN, ids=name_of)
def test_the_selection_kit_catches(law, cls, changes):
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(kit(cls, **changes)(), law)()


def test_a_policy_that_counts_on_devices_fills_a_round_without_faults():
    """So that the check above finds the fault that it is for."""
    kit(CountsOnThem)().test_a_round_is_filled()


def test_every_selection_law_has_a_broken_policy():
    laws = {name for name in dir(SelectionPolicyConformance) if name.startswith("test_")}
    assert {law for law, _, _ in BROKEN} == laws


def test_binomial_bounds():
    # P(X <= 0 or X >= 10) of ten throws of a coin is 2/1024.
    assert binomial_bounds(10, 0.5, 2.1 / 1024) == (1, 9)
    assert binomial_bounds(10, 0.5, 1.9 / 1024) == (0, 10)
    assert binomial_bounds(5, 0.0, 0.1) == (0, 0)
    assert binomial_bounds(5, 1.0, 0.1) == (5, 5)
