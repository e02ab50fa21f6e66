"""Laws of the built-in selection policies, and what each is for."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.rounds.policies import Assign, Candidate, OpenTask, Reject, SelectionView
from fcp_plugins.selection import CohortPolicy, FifoPolicy, UniformPolicy, WeightedPolicy
from fcp_plugins.selection_fair import FairSharePolicy, parse_shares

NAMES = ["t", "u", "v"]
POLICIES = {
    "fifo": FifoPolicy,
    "uniform": lambda: UniformPolicy(window=5.0, min_candidates=None),
    "uniform at once": lambda: UniformPolicy(window=0.0, min_candidates=None),
    "uniform with enough": lambda: UniformPolicy(window=5.0, min_candidates=2),
    "fair share": lambda: FairSharePolicy(5.0, None, [("u", 2.0)]),
    "weighted": lambda: WeightedPolicy(5.0, None, max_weight=2.0),
}

weights = st.none() | st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 1.0, 2.5]))
arrivals = st.floats(min_value=90, max_value=100)


@st.composite
def views(draw):
    arrived = sorted(draw(st.lists(arrivals, max_size=12)))
    candidates = [Candidate(f"c{i}", at, draw(weights)) for i, at in enumerate(arrived)]
    tasks = [
        OpenTask(
            f"task{i}",
            draw(st.sampled_from(NAMES)),
            capacity=draw(st.integers(0, 4)),
            missing=draw(st.integers(0, 4)),
            created=draw(st.floats(min_value=80, max_value=100)),
        )
        for i in range(draw(st.integers(0, 4)))
    ]
    return candidates, tasks


def view_of(candidates, tasks, now=100.0, seed=0, state=None):
    return SelectionView(candidates, tasks, now=now, rng=random.Random(seed), state=state)


def check(candidates, tasks, selection):
    """Check what holds for every decision of every policy."""
    assigned = {decision.candidate: decision.task_id for decision in selection.decisions}
    assert all(isinstance(decision, Assign) for decision in selection.decisions)
    assert len(assigned) == len(selection.decisions), "a candidate was decided on twice"
    by_id = {candidate.id: candidate for candidate in candidates}
    open_tasks = {task.task_id: task for task in tasks}
    for candidate, task in assigned.items():
        assert by_id[candidate].eligible(open_tasks[task].name)
    for task, count in Counter(assigned.values()).items():
        assert count <= open_tasks[task].capacity
    assert selection.tick_in is None or selection.tick_in > 0
    return assigned


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_decisions_are_possible_and_repeatable(name):
    policy = POLICIES[name]()

    @given(views(), st.integers())
    def law(view, seed):
        candidates, tasks = view
        selection = policy.select(view_of(candidates, tasks, seed=seed))
        check(candidates, tasks, selection)
        again = POLICIES[name]().select(view_of(candidates, tasks, seed=seed))
        assert again == selection, "the same seed gave another choice"

    law()


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_nobody_waits_for_ever(name):
    """If a policy is asked when it wants to be, no eligible pair of room and candidate is left."""
    policy = POLICIES[name]()

    @given(views())
    def law(view):
        candidates, tasks = view
        now = 100.0
        for _ in range(3):
            selection = policy.select(view_of(candidates, tasks, now))
            if selection.tick_in is None:
                break
            now += selection.tick_in
        assert selection.tick_in is None
        assigned = check(candidates, tasks, selection)
        used = Counter(assigned.values())
        room = [task for task in tasks if used[task.task_id] < task.capacity]
        waiting = [candidate for candidate in candidates if candidate.id not in assigned]
        assert not any(c.eligible(task.name) for c in waiting for task in room)

    law()


def test_fifo_serves_in_order_and_the_tasks_in_turn():
    candidates = [Candidate(f"c{i}", float(i)) for i in range(6)]
    tasks = [OpenTask("old", "t", 2, 2, 0.0), OpenTask("new", "u", 3, 3, 1.0)]
    assert FifoPolicy().select(view_of(candidates, tasks)).decisions == [
        Assign("c0", "old"),
        Assign("c1", "new"),
        Assign("c2", "old"),
        Assign("c3", "new"),
        Assign("c4", "new"),
    ]


def test_fifo_fills_the_oldest_task_of_a_name_first():
    candidates = [Candidate(f"c{i}", float(i)) for i in range(4)]
    tasks = [
        OpenTask("old", "t", 1, 1, 0.0),
        OpenTask("next", "t", 2, 2, 1.0),
        OpenTask("other", "u", 1, 1, 2.0),
    ]
    assert FifoPolicy().select(view_of(candidates, tasks)).decisions == [
        Assign("c0", "old"),
        Assign("c1", "other"),
        Assign("c2", "next"),
        Assign("c3", "next"),
    ]


def test_fifo_serves_in_turn_those_who_come_one_by_one():
    policy, state, served = FifoPolicy(), None, []
    for i in range(8):
        # The third comes later: it is served first then, and has nothing to catch up.
        names = ["t", "u"] if i < 4 else ["t", "u", "v"]
        tasks = [OpenTask(name, name, 9, 9, 0.0) for name in names]
        selection = policy.select(view_of([Candidate(f"c{i}", 0.0)], tasks, state=state))
        state = selection.state
        served += [decision.task_id for decision in selection.decisions]
    assert served == ["t", "u", "t", "u", "v", "t", "u", "v"]


def test_fifo_forgets_the_names_of_long_ago():
    policy, state = FifoPolicy(), None
    for i in range(300):
        tasks = [OpenTask("t", "t", 9, 9, 0.0), OpenTask("x", f"name{i}", 9, 9, 0.0)]
        candidates = [Candidate(f"c{j}", 0.0) for j in range(2)]
        selection = policy.select(view_of(candidates, tasks, state=state))
        assert {decision.task_id for decision in selection.decisions} == {"t", "x"}
        state = selection.state
    assert len(state) == 100
    # One name alone has no turns, and nothing changes.
    alone = view_of([Candidate("c", 0.0)], [OpenTask("t", "t", 9, 9, 0.0)], state=state)
    assert policy.select(alone).state == state


def test_fifo_passes_over_who_may_not():
    candidates = [Candidate("c0", 0.0, {"t": 0.0}), Candidate("c1", 1.0, {"t": 1.0})]
    selection = FifoPolicy().select(view_of(candidates, [OpenTask("x", "t", 1, 1, 0.0)]))
    assert selection.decisions == [Assign("c1", "x")]


def test_uniform_waits_for_its_window():
    policy = UniformPolicy(window=5.0, min_candidates=None)
    candidates = [Candidate("c0", 98.0), Candidate("c1", 99.0)]
    task = OpenTask("x", "t", 1, 1, 0.0)
    early = policy.select(view_of(candidates, [task], now=100.0))
    assert (list(early.decisions), early.tick_in) == ([], 3.0)
    assert len(policy.select(view_of(candidates, [task], now=103.0)).decisions) == 1


def test_a_new_task_starts_a_window_for_those_who_wait():
    policy = UniformPolicy(window=5.0, min_candidates=None)
    selection = policy.select(
        view_of([Candidate("c0", 10.0)], [OpenTask("x", "t", 1, 1, created=99.0)], now=100.0)
    )
    assert selection.tick_in == 4.0


def test_uniform_draws_as_soon_as_there_are_enough():
    policy = UniformPolicy(window=5.0, min_candidates=2)
    task = OpenTask("x", "t", 1, 1, 0.0)
    able, unable = Candidate("c0", 100.0), Candidate("c1", 100.0, {"t": 0.0})
    assert not policy.select(view_of([able, unable], [task])).decisions
    more = [able, unable, Candidate("c2", 100.0)]
    assert len(policy.select(view_of(more, [task])).decisions) == 1


def test_uniform_gives_everyone_the_same_chance():
    """Ten candidates for three places, 4,000 draws: each count stays within five deviations."""
    policy = UniformPolicy(window=0.0, min_candidates=None)
    candidates = [Candidate(f"c{i}", float(i)) for i in range(10)]
    tasks = [OpenTask("x", "t", 3, 3, 0.0)]
    rng = random.Random(20)
    counts = Counter()
    draws = 4000
    for _ in range(draws):
        selection = policy.select(SelectionView(candidates, tasks, 100.0, rng))
        counts.update(decision.candidate for decision in selection.decisions)
    expected = draws * 0.3
    deviation = (draws * 0.3 * 0.7) ** 0.5
    assert len(counts) == 10
    assert all(abs(count - expected) < 5 * deviation for count in counts.values())


def test_many_candidates_without_room_cost_little():
    candidates = [Candidate(f"c{i}", float(i)) for i in range(100_000)]
    tasks = [OpenTask("x", "t", 1, 1, 0.0)]
    assert FifoPolicy().select(view_of(candidates, tasks)).decisions == [Assign("c0", "x")]


# The time in which candidates gather.


def gathering(candidates, tasks, now):
    """Return how long a policy that gathers for a minute waits on; None if it draws."""
    policy = UniformPolicy(window=60.0, min_candidates=None)
    selection = policy.select(view_of(candidates, tasks, now=now))
    assert bool(selection.decisions) == (selection.tick_in is None)
    return selection.tick_in


def test_it_begins_when_there_is_a_candidate_and_a_task_for_it():
    task = OpenTask("x", "t", 5, 5, created=100.0)
    early, late = Candidate("c0", 50.0), Candidate("c1", 120.0)
    assert gathering([early], [task], 130.0) == 30.0
    assert gathering([late], [task], 130.0) == 50.0
    assert gathering([early, late], [task], 130.0) == 30.0
    assert gathering([late], [task], 179.0) == 1.0
    assert gathering([late], [task], 180.0) is None
    # The first of two tasks counts, whichever comes first in the list.
    for tasks in ([task, OpenTask("y", "t", 5, 5, 110.0)], [OpenTask("y", "t", 5, 5, 90.0), task]):
        created = min(task.created for task in tasks)
        assert gathering([early], tasks, 130.0) == created + 30.0 - 100.0


@pytest.mark.parametrize(
    "other",
    [
        OpenTask("full", "t", capacity=0, missing=3, created=0.0),
        OpenTask("not for them", "u", capacity=3, missing=3, created=0.0),
    ],
)
def test_a_task_that_no_candidate_may_have_does_not_begin_it(other):
    task = OpenTask("new", "t", 5, 5, created=100.0)
    waiting = [Candidate("c0", 10.0, {"t": 1.0}), Candidate("c1", 20.0, {"t": 1.0})]
    for tasks in ([task, other], [other, task]):
        assert gathering(waiting, tasks, 110.0) == 50.0
        assert gathering(waiting, tasks, 160.0) is None


def test_each_candidate_counts_for_its_own_tasks_only():
    tasks = [OpenTask("x", "t", 5, 5, created=100.0), OpenTask("y", "u", 5, 5, created=0.0)]
    only_t, only_u = Candidate("c0", 10.0, {"t": 1.0}), Candidate("c1", 90.0, {"u": 1.0})
    assert gathering([only_t], tasks, 110.0) == 50.0
    assert gathering([only_t, only_u], tasks, 110.0) == 40.0


# Cohorts.


def test_a_cohort_gathers_and_starts_together():
    task = OpenTask("x", "t", capacity=3, missing=2, created=0.0)
    two = [Candidate("c0", 99.0), Candidate("c1", 100.0)]
    early = CohortPolicy(60.0).select(view_of(two, [task]))
    assert (list(early.decisions), early.tick_in) == ([], 59.0)
    whole = CohortPolicy(60.0).select(view_of([*two, Candidate("c2", 100.0)], [task]))
    assert {decision.candidate for decision in whole.decisions} == {"c0", "c1", "c2"}
    late = CohortPolicy(60.0).select(view_of(two, [task], now=159.0))
    assert {decision.candidate for decision in late.decisions} == {"c0", "c1"}


@pytest.mark.parametrize(("pending", "tops_up"), [(2, False), (3, False), (1, True)])
def test_a_cohort_is_topped_up_only_if_it_cannot_fill_the_round(pending, tops_up):
    task = OpenTask("x", "t", capacity=1, missing=2, created=0.0, pending=pending)
    selection = CohortPolicy(60.0).select(view_of([Candidate("c0", 100.0)], [task]))
    expected = Assign("c0", "x") if tops_up else Reject("c0")
    assert selection.decisions == [expected]


def test_who_gathers_for_one_task_is_not_taken_by_the_next():
    tasks = [OpenTask("old", "t", 2, 2, 0.0), OpenTask("new", "u", 1, 1, 0.0)]
    candidates = [Candidate("c0", 100.0), Candidate("c1", 100.0, {"u": 1.0})]
    selection = CohortPolicy(60.0).select(view_of(candidates, tasks))
    assert selection.decisions == [Assign("c1", "new")]
    assert selection.tick_in == 60.0


# Fair shares.


def serve(policy, tasks, rounds, eligible=None):
    """Let one device at a time arrive, *rounds* times; count what each name got."""
    counts, state = Counter(), None
    names = {task.task_id: task.name for task in tasks}
    for i in range(rounds):
        candidate = Candidate(f"c{i}", 100.0, eligible)
        view = SelectionView([candidate], tasks, 100.0, random.Random(i), state)
        selection = policy.select(view)
        state = selection.state
        counts.update(names[decision.task_id] for decision in selection.decisions)
    return counts, state


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1))
def test_tasks_are_served_in_proportion_to_their_shares(shares):
    tasks = [OpenTask(f"x{name}", name, 5, 5, 0.0) for name in shares]
    policy = FairSharePolicy(0.0, None, list(shares.items()))
    counts, _ = serve(policy, tasks, 120)
    for name, share in shares.items():
        assert abs(counts[name] - 120 * share / sum(shares.values())) <= 1 + share


def test_a_task_that_was_away_cannot_save_up():
    policy = FairSharePolicy(0.0, None)
    first = [OpenTask("x", "t", 5, 5, 0.0)]
    _, state = serve(policy, first, 50)
    both = [*first, OpenTask("y", "u", 5, 5, 0.0)]
    candidates = [Candidate(f"d{i}", 100.0) for i in range(4)]
    view = SelectionView(candidates, both, 100.0, random.Random(0), state)
    assert Counter(d.task_id for d in policy.select(view).decisions) == {"x": 2, "y": 2}


def test_what_is_kept_about_tasks_does_not_grow():
    policy, state = FairSharePolicy(0.0, None), None
    for i in range(50):
        tasks = [OpenTask(f"x{i}", f"name/{i}", 5, 5, 0.0)]
        candidates = [Candidate(f"c{i}.{k}", 100.0) for k in range(5)]
        view = SelectionView(candidates, tasks, 100.0, random.Random(i), state)
        state = policy.select(view).state
    assert len(state["due"]) <= 2


def test_few_choices_go_first_then_long_waits():
    tasks = [OpenTask("x", "t", 1, 1, 0.0), OpenTask("y", "u", 1, 1, 0.0)]
    able, picky = Candidate("able", 0.0), Candidate("picky", 100.0, {"t": 1.0})
    policy = FairSharePolicy(5.0, None)
    for seed in range(5):
        selection = policy.select(view_of([able, picky], tasks, now=105.0, seed=seed))
        assert set(selection.decisions) == {Assign("picky", "x"), Assign("able", "y")}
        passed_over = [Candidate("new", 100.0), Candidate("old", 94.0)]
        selection = policy.select(view_of(passed_over, tasks[:1], now=105.0, seed=seed))
        assert selection.decisions == [Assign("old", "x")]


@pytest.mark.parametrize("item", ["train", "train=", "=2", "train=0", "train=nan", "train=inf"])
def test_shares_are_checked(item):
    with pytest.raises(UsageError, match="shares"):
        parse_shares([item])


def test_shares_take_patterns():
    assert parse_shares(["train/*=3", "a = 0.5"]) == [("train/*", 3.0), ("a", 0.5)]


# Weights.


def test_a_larger_weight_is_drawn_in_proportion():
    """Weights 1, 2 and 5 (a claim of 1e9 counts as 5): each count within five deviations."""
    policy = WeightedPolicy(0.0, None, max_weight=5.0)
    candidates = [
        Candidate("one", 0.0),
        Candidate("two", 0.0, {"t": 2.0}),
        Candidate("five", 0.0, {"t": 1e9}),
        Candidate("none", 0.0, {"u": 1.0}),
    ]
    tasks = [OpenTask("x", "t", 1, 1, 0.0)]
    rng, counts, draws = random.Random(5), Counter(), 4000
    for _ in range(draws):
        selection = policy.select(SelectionView(candidates, tasks, 100.0, rng))
        counts.update(decision.candidate for decision in selection.decisions)
    for name, weight in (("one", 1), ("two", 2), ("five", 5)):
        share = weight / 8
        assert abs(counts[name] - draws * share) < 5 * (draws * share * (1 - share)) ** 0.5
    assert counts["none"] == 0


@pytest.mark.parametrize("weight", [5e-324, float("inf")])
def test_absurd_weights_break_nothing(weight):
    policy = WeightedPolicy(0.0, None, max_weight=5.0)
    candidates = [Candidate("c0", 0.0, {"t": weight}), Candidate("c1", 0.0, {"t": float("nan")})]
    selection = policy.select(view_of(candidates, [OpenTask("x", "t", 2, 2, 0.0)]))
    assert selection.decisions == [Assign("c0", "x")]
