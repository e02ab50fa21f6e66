"""Laws of the built-in selection policies, and what each is for."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.rounds.policies import Assign, Candidate, OpenTask, SelectionView
from fcp_plugins.selection import FifoPolicy, UniformPolicy

NAMES = ["t", "u", "v"]
POLICIES = {
    "fifo": FifoPolicy,
    "uniform": lambda: UniformPolicy(window=5.0, min_candidates=None),
    "uniform at once": lambda: UniformPolicy(window=0.0, min_candidates=None),
    "uniform with enough": lambda: UniformPolicy(window=5.0, min_candidates=2),
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


def view_of(candidates, tasks, now=100.0, seed=0):
    return SelectionView(candidates, tasks, now=now, rng=random.Random(seed))


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


def test_fifo_serves_in_order_and_fills_the_oldest_task_first():
    candidates = [Candidate(f"c{i}", float(i)) for i in range(5)]
    tasks = [OpenTask("old", "t", 2, 2, 0.0), OpenTask("new", "u", 2, 2, 1.0)]
    assert FifoPolicy().select(view_of(candidates, tasks)).decisions == [
        Assign("c0", "old"),
        Assign("c1", "old"),
        Assign("c2", "new"),
        Assign("c3", "new"),
    ]


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
