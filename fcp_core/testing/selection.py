"""The conformance kit of selection policies: subclass, name a factory, run with pytest.

An example, complete::

    class TestNewest(SelectionPolicyConformance):
        factory = my_plugin.NEWEST
        ordered = True

The kit plays the server's part: devices arrive, time passes, the policy is asked, those that it
assigned or rejected leave.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from hypothesis import strategies as st

from fcp_core.rounds.policies import (
    Assign,
    BoundPolicy,
    Decision,
    Reject,
    Selection,
    SelectionPolicy,
    SelectionPolicyFactory,
    SelectionView,
)
from fcp_core.testing.binomial import assert_even
from fcp_core.testing.kit import Conformance, outside_calls
from fcp_core.testing.laws import applies_if
from fcp_core.testing.populations import (
    TASK_NAMES,
    VERSIONS,
    FirstCome,
    Opening,
    Population,
    Step,
    Weights,
    scripts,
)

#: Devices that are equal before a task: their other weights say nothing about it.
_EQUAL: Sequence[Weights] = ({"train": 1.0}, {"train": 1.0, "evaluate": 0.0})


class SelectionPolicyConformance(Conformance):
    """The laws of :class:`fcp_core.rounds.policies.SelectionPolicy`, checked for one factory."""

    factory: ClassVar[SelectionPolicyFactory]
    #: Everything that the policy needs: defaults are the configuration's, not the kit's.
    options: ClassVar[Mapping[str, Any]] = {}
    #: Whether the place of a candidate matters (first come, first served), by intention.
    ordered: ClassVar[bool] = False
    #: Whether devices that wait at the same time, with equal weights, have equal chances.
    fair: ClassVar[bool] = False
    #: Within how much time a round is filled while devices keep coming, in seconds.
    patience: ClassVar[float] = 86400.0

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, and makes selection policies."""
        assert self.factory.name
        assert self.factory.summary
        assert "\n" not in self.factory.summary
        assert isinstance(self.make(), SelectionPolicy)

    def test_only_those_who_wait_are_decided_about(self) -> None:
        """Every decision is about a candidate that was shown, and about a task that was shown."""

        def law(view: SelectionView, selection: Selection) -> None:
            names = {candidate.id for candidate in view.candidates}
            tasks = {task.task_id for task in view.tasks}
            for decision in selection.decisions:
                assert isinstance(decision, Assign | Reject), f"{decision!r} is no decision"
                assert decision.candidate in names, f"{decision} is about nobody who waits"
                if isinstance(decision, Assign):
                    assert decision.task_id in tasks, f"{decision} is about no task that is open"

        self._always(law)

    def test_nobody_is_decided_about_twice(self) -> None:
        """There is one decision about a candidate at most."""

        def law(view: SelectionView, selection: Selection) -> None:
            counts = Counter(decision.candidate for decision in selection.decisions)
            assert [name for name, count in counts.items() if count > 1] == []

        self._always(law)

    def test_no_task_gets_more_than_it_takes(self) -> None:
        """Assignments stay within each task's capacity."""

        def law(view: SelectionView, selection: Selection) -> None:
            taken = Counter(assign.task_id for assign in _assigns(selection))
            for task in view.tasks:
                assert taken[task.task_id] <= task.capacity

        self._always(law)

    def test_no_task_is_given_to_a_device_that_is_not_eligible(self) -> None:
        """A weight of zero, or none where others have one, means no."""

        def law(view: SelectionView, selection: Selection) -> None:
            candidates = {candidate.id: candidate for candidate in view.candidates}
            names = {task.task_id: task.name for task in view.tasks}
            for assign in _assigns(selection):
                candidate = candidates.get(assign.candidate)
                assert candidate is None or candidate.eligible(names.get(assign.task_id, ""))

        self._always(law)

    def test_waiting_times_are_times(self) -> None:
        """A tick lies ahead; a retry window begins at zero or later and does not end before."""

        def law(view: SelectionView, selection: Selection) -> None:
            if selection.tick_in is not None:
                assert 0 < selection.tick_in < math.inf
            for decision in selection.decisions:
                if isinstance(decision, Reject) and decision.retry is not None:
                    assert 0 <= decision.retry.delay_min <= decision.retry.delay_max < math.inf

        self._always(law)

    def test_the_same_seed_gives_the_same_choice(self) -> None:
        """What is decided depends on what is shown, the generator included, and on nothing else."""

        def law(script: list[Step], seed: int) -> None:
            first = self._play(script, seed, itertools.repeat(self.make()).__next__)
            assert self._play(script, seed, itertools.repeat(self.make()).__next__) == first

        self.check(law, scripts(), st.integers(0, 2**31))

    def test_nothing_is_kept_on_the_policy(self) -> None:
        """A fresh policy that is given the returned state goes on as the old one would."""

        def law(script: list[Step], seed: int) -> None:
            kept = self._play(script, seed, itertools.repeat(self.make()).__next__)
            assert self._play(script, seed, self.make) == kept

        self.check(law, scripts(), st.integers(0, 2**31))

    def test_the_state_survives_json(self) -> None:
        """The server keeps a state as JSON: it comes back the same, and the policy goes on."""

        def law(script: list[Step], seed: int) -> None:
            kept = self._play(script, seed, self.make)
            assert self._play(script, seed, self.make, keep=_through_json) == kept

        self.check(law, scripts(), st.integers(0, 2**31))

    def test_what_it_is_shown_stays_as_it_was(self) -> None:
        """The state and the options that a policy is given are not changed in place."""

        def law(view: SelectionView, make: Callable[[], SelectionPolicy]) -> None:
            shown = copy.deepcopy((view.state, dict(view.options)))
            make().select(view)
            assert (view.state, dict(view.options)) == shown

        self._at_every_step(law)

    def test_it_does_no_input_or_output(self) -> None:
        """No files, sockets or processes, and nothing printed."""
        self._watched("io")

    def test_it_reads_no_clock(self) -> None:
        """The time is what the view says."""
        self._watched("clock")

    def test_it_uses_no_global_randomness(self) -> None:
        """Only the view's own generator is used."""
        self._watched("randomness")

    @applies_if(lambda kit: not kit.ordered)
    def test_the_order_of_candidates_does_not_matter(self) -> None:
        """Of candidates that came at one time, none is preferred for its place in the list."""
        orders = random.Random(1)
        pool, rounds, places = 8, 600, 3

        def chosen_places(seed: int) -> set[int]:
            population = self._pool(seed, pool, places)
            names = list(population.candidates)
            orders.shuffle(names)
            population.candidates = {name: population.candidates[name] for name in names}
            return {names.index(assign.candidate) for assign in self._first_round(population)}

        assert_even(chosen_places, pool, rounds, "the candidate at place")

    @applies_if(lambda kit: kit.fair)
    def test_equal_devices_have_equal_chances(self) -> None:
        """Of devices that wait together, early or late, each is chosen equally often."""
        pool, rounds, places = 8, 600, 3
        before = Population(self.options)

        def chosen_devices(seed: int) -> set[int]:
            nonlocal before
            population = self._pool(seed, pool, places, apart=0.01, after=before)
            names = list(population.candidates)
            before = population
            return {names.index(assign.candidate) for assign in self._first_round(population)}

        assert_even(chosen_devices, pool, rounds, "the device that arrives as number")

    def test_a_round_is_filled(self) -> None:
        """While eligible devices keep coming, a task gets all that it can take, in time."""

        def law(capacity: int, seed: int) -> None:
            self._fill(seed, capacity, vanish=False)

        self.check(law, st.integers(1, 20), st.integers(0, 2**31))

    def test_no_kind_of_device_is_left_out(self) -> None:
        """So it does if all of them are of one kind: of one version, with one weight or none."""
        for version, weights in itertools.product(VERSIONS, (None, {"train": 1e-3}, {"train": 9})):
            self._fill(0, 2, vanish=False, weights=weights, versions=(version,))

    def test_a_round_is_filled_although_devices_vanish(self) -> None:
        """A device that was chosen and does not start leaves a place, which is given again."""

        def law(capacity: int, seed: int) -> None:
            self._fill(seed, capacity, vanish=True)

        self.check(law, st.integers(1, 10), st.integers(0, 2**31))

    def test_empty_pools(self) -> None:
        """Without a candidate or without a task nobody is assigned, and nothing breaks."""
        for arrivals, opens in (((), ()), ((None,), ()), ((), (Opening("train", 2),))):
            population = Population(self.options)
            population.advance(Step(arrivals=arrivals, opens=opens))
            assert _assigns(self.make().select(population.view())) == []

    def test_a_huge_pool(self) -> None:
        """Many thousands may wait; the laws hold for them too."""
        population = Population(self.options)
        opens = tuple(Opening(name, 500) for name in TASK_NAMES)
        eligible: Weights = {"train": 1.0, "count/words": 2.0}
        population.advance(Step(arrivals=(None, eligible, {}) * 2000, opens=opens))
        assigned: Counter[str] = Counter()
        for _ in range(50):
            view = population.view()
            selection = self.make().select(view)
            waiting = {candidate.id: candidate for candidate in view.candidates}
            for assign in _assigns(selection):
                assert waiting.pop(assign.candidate).eligible(population.tasks[assign.task_id].name)
                assigned[assign.task_id] += 1
            population.take(selection)
            population.advance(Step(elapsed=None if selection.tick_in else 1.0))
        assert all(count <= 500 for count in assigned.values())

    def make(self) -> SelectionPolicy:
        """Make a policy."""
        if self.factory.wraps is not None:
            return self.factory.make(self.options, self.wrapped())
        return self.factory.make(self.options)

    def wrapped(self) -> SelectionPolicy:
        """Make the policy that is wrapped, if one is: first come, first served."""
        return BoundPolicy(FirstCome(), {})

    def _play(
        self,
        script: Sequence[Step],
        seed: int,
        make: Callable[[], SelectionPolicy],
        keep: Callable[[Any], Any] = lambda state: state,
    ) -> list[tuple[list[Decision], float | None]]:
        """Return what policies decide in the course of a script."""
        population = Population(self.options, seed)
        decided = []
        for step in script:
            population.advance(step)
            population.state = keep(population.state)
            selection = make().select(population.view())
            population.take(selection)
            decided.append((list(selection.decisions), selection.tick_in))
        return decided

    def _at_every_step(
        self, law: Callable[[SelectionView, Callable[[], SelectionPolicy]], None]
    ) -> None:
        """Try a law on every view of random histories."""

        def over(script: list[Step], seed: int) -> None:
            population = Population(self.options, seed)
            for step in script:
                population.advance(step)
                view = population.view()
                law(replace(view, rng=copy.copy(view.rng)), self.make)
                population.take(self.make().select(view))

        self.check(over, scripts(), st.integers(0, 2**31))

    def _always(self, law: Callable[[SelectionView, Selection], None]) -> None:
        """Try a law on every answer of random histories."""
        self._at_every_step(lambda view, make: law(view, make().select(view)))

    def _watched(self, kind: str) -> None:
        """Check that nothing of a kind is used, beyond what the first call imports."""

        def law(view: SelectionView, make: Callable[[], SelectionPolicy]) -> None:
            policy = make()
            again = replace(view, rng=copy.copy(view.rng), state=copy.deepcopy(view.state))
            policy.select(again)
            with outside_calls() as outside:
                policy.select(view)
            assert getattr(outside, kind) == []

        self._at_every_step(law)

    def _pool(
        self,
        seed: int,
        size: int,
        places: int,
        apart: float = 0.0,
        after: Population | None = None,
    ) -> Population:
        """Return a population of equal devices, with one task that has too few places.

        They are equal though not alike: in their versions, and in what else they are eligible for.

        :param apart: how many seconds lie between two arrivals.
        :param after: the population's last round, whose time and state go on.
        """
        population = Population(self.options, seed)
        if after is not None:
            population.now, population.state = after.now, after.state
        for number in range(size):
            population.advance(Step(elapsed=apart, arrivals=(_EQUAL[number % len(_EQUAL)],)))
        population.advance(Step(elapsed=0.0, opens=(Opening("train", places),)))
        return population

    def _first_round(self, population: Population) -> list[Assign]:
        """Ask until somebody is assigned, with time passing as the policy wishes."""
        until = population.now + self.patience
        while population.now <= until:
            population.take(self.make().select(population.view()))
            if population.last or not population.candidates:
                return population.last
            population.advance(Step(elapsed=60.0 if population.tick is None else None))
        return []

    def _fill(
        self,
        seed: int,
        capacity: int,
        *,
        vanish: bool,
        weights: Weights = _EQUAL[0],
        versions: tuple[str, ...] = VERSIONS,
    ) -> None:
        """Run a round in which devices keep coming; every device vanishes once if they do."""
        population = Population(self.options, seed, versions=versions)
        population.advance(Step(opens=(Opening("train", capacity),)))
        until = population.now + self.patience
        filled, vanishing = 0, capacity if vanish else 0
        while population.now <= until:
            missing = 2 * capacity - len(population.candidates)
            population.advance(Step(elapsed=0.0, arrivals=(weights,) * missing))
            population.take(self.make().select(population.view()))
            gone = min(vanishing, len(population.last))
            vanishing -= gone
            filled += len(population.last) - gone
            if filled >= capacity:
                return
            wish = math.inf if population.tick is None else population.tick - population.now
            population.advance(Step(elapsed=min(wish, 60.0), vanish=gone))
        raise AssertionError(
            f"after {self.patience:.0f} s {filled} of {capacity} places were given to devices, "
            "although eligible ones were waiting all the time"
        )


def _assigns(selection: Selection) -> list[Assign]:
    return [decision for decision in selection.decisions if isinstance(decision, Assign)]


def _through_json(state: Any) -> Any:
    restored = json.loads(json.dumps(state, allow_nan=False))
    assert restored == state, f"the state {state!r} comes back from JSON as {restored!r}"
    return restored
