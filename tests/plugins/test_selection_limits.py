"""The selection policies that limit another one: rate caps, times of the day."""

import datetime
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.rounds.policies import Assign, Candidate, OpenTask, Reject, SelectionView
from fcp_plugins.selection import FifoPolicy
from fcp_plugins.selection_fair import FairSharePolicy
from fcp_plugins.selection_limits import RateCappedPolicy, TimeWindowsPolicy, parse_windows


def capped(limit=None, task_limit=None, period=60.0, wait=1e9, inner=None):
    return RateCappedPolicy(inner or FifoPolicy(), period, limit, task_limit, wait)


def run(policy, history):
    """Play (seconds that pass, names of candidates' only tasks); return (time, task) given."""
    now, state, given_, waiting = 1000.0, None, [], []
    tasks = [OpenTask(name, name, 100, 100, 0.0) for name in "tu"]
    for number, (elapsed, names) in enumerate(history):
        now += elapsed
        waiting += [Candidate(f"{number}.{i}", now, {n: 1.0}) for i, n in enumerate(names)]
        selection = policy.select(SelectionView(waiting, tasks, now, random.Random(0), state))
        state = selection.state
        for decision in selection.decisions:
            waiting = [c for c in waiting if c.id != decision.candidate]
            if isinstance(decision, Assign):
                given_.append((now, decision.task_id))
    return given_


histories = st.lists(
    st.tuples(st.floats(0.0, 40.0), st.lists(st.sampled_from("tu"), max_size=6)), max_size=20
)


@given(histories, st.integers(1, 6), st.integers(1, 4))
def test_no_period_has_more_than_the_limits(history, limit, task_limit):
    for inner in (FifoPolicy(), FairSharePolicy(0.0, None)):
        assigned = run(capped(limit, task_limit, inner=inner), history)
        for start, _ in assigned:
            within = [task for at, task in assigned if start <= at < start + 60.0]
            assert len(within) <= limit
            assert all(within.count(name) <= task_limit for name in "tu")


@given(histories, st.integers(1, 6), st.none() | st.integers(1, 4))
def test_who_waits_does_so_for_a_limit_only(history, limit, task_limit):
    """Assignments count once, until a sixtieth of the period after its end at the latest."""
    history = [*history, (0.0, "tu")]
    assigned = run(capped(limit, task_limit), history)
    now, arrived = 1000.0, {"t": 0, "u": 0}
    for elapsed, names in history:
        now += elapsed
        for name in "tu":
            arrived[name] += names.count(name)
        recent = [task for at, task in assigned if now - 61.0 - 1e-6 < at <= now]
        for name in "tu":
            waits = arrived[name] > sum(task == name for at, task in assigned if at <= now)
            full = len(recent) >= limit or recent.count(name) >= (task_limit or math.inf)
            assert full or not waits, f"{name} waits at {now} for nothing: {assigned}"


def test_a_limit_is_used_up_one_by_one():
    history = [(1.0, "t")] * 5
    assert [at for at, _ in run(capped(limit=3), history)] == [1001.0, 1002.0, 1003.0]
    assert [at for at, _ in run(capped(task_limit=4), history)] == [1001.0, 1002.0, 1003.0, 1004.0]


def test_what_a_limit_leaves_is_used():
    history = [(0.0, "tttt"), (59.0, ""), (3.0, ""), (62.0, "")]
    times = [at for at, _ in run(capped(limit=2), history)]
    assert times == [1000.0, 1000.0, 1062.0, 1062.0]


def test_who_would_wait_too_long_is_sent_away():
    tasks = [OpenTask("x", "t", 9, 9, 0.0)]
    candidates = [Candidate(f"c{i}", 1000.0) for i in range(3)]
    view = SelectionView(candidates, tasks, 1000.0, random.Random(0))
    patient = capped(limit=1, wait=100.0).select(view)
    assert patient.decisions == [Assign("c0", "x")]
    assert 60.0 <= patient.tick_in <= 61.0
    just = capped(limit=1, wait=patient.tick_in).select(view)
    assert (just.decisions, just.tick_in) == (patient.decisions, patient.tick_in)
    hasty = capped(limit=1, wait=10.0).select(view)
    assert [type(decision) for decision in hasty.decisions] == [Assign, Reject, Reject]
    assert hasty.decisions[1].retry.delay_min == patient.tick_in


def test_the_inner_policy_keeps_what_came_of_its_choice():
    """It chose four, the cap left two: its count of served devices must be two."""
    policy = capped(limit=2, inner=FairSharePolicy(0.0, None))
    tasks = [OpenTask("x", "t", 9, 9, 0.0)]
    candidates = [Candidate(f"c{i}", 1000.0) for i in range(4)]
    selection = policy.select(SelectionView(candidates, tasks, 1000.0, random.Random(0)))
    assert sum(isinstance(decision, Assign) for decision in selection.decisions) == 2
    assert selection.state["inner"]["due"] == {"t": 2.0}


def test_a_cap_needs_a_limit():
    with pytest.raises(UsageError, match="limit"):
        capped()


def at(text, offset=0):
    zone = datetime.timezone(datetime.timedelta(hours=offset))
    return datetime.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


# 22 November 2026 is a Sunday.
@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-11-22 21:59:00", 60),
        ("2026-11-22 22:00:00", 0),
        ("2026-11-23 05:59:59", 0),
        ("2026-11-23 06:00:00", 16 * 3600),
        ("2026-11-24 03:00:00", 0),
    ],
)
def test_a_night(now, until):
    assert parse_windows(["22:00-06:00"], [], "+02:00").until_open(at(now, 2)) == until


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-11-22 23:30:00", 0),
        ("2026-11-23 00:30:00", 0),
        ("2026-11-23 01:00:00", 6 * 86400 + 22 * 3600),
        ("2026-11-22 12:00:00", 11 * 3600),
    ],
)
def test_the_day_is_the_one_that_a_window_begins_on(now, until):
    assert parse_windows(["23:00-01:00"], ["Sun"], "-05:30").until_open(at(now, -5.5)) == until


@given(st.floats(0, 4e9), st.sampled_from([0, 1, 5, 6]), st.sampled_from(["+00:00", "-11:30"]))
def test_it_opens_when_it_says(now, day, offset):
    name = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")[day]
    windows = parse_windows(["09:00-17:00", "22:15-02:00"], [name], offset)
    until = windows.until_open(now)
    assert 0 <= until < 7 * 86400
    assert windows.until_open(now + until + 1e-3) == 0
    if until > 2:
        assert windows.until_open(now + until - 1) > 0


def test_inside_the_inner_policy_decides_and_outside_nobody():
    windows = parse_windows(["10:00-11:00"], [], "+00:00")
    tasks, candidate = [OpenTask("x", "t", 1, 1, 0.0)], Candidate("c", 0.0)

    def select(now, wait=60.0):
        policy = TimeWindowsPolicy(FifoPolicy(), windows, wait)
        return policy.select(SelectionView([candidate], tasks, at(now), random.Random(0), "kept"))

    assert select("2026-11-22 10:30:00").decisions == [Assign("c", "x")]
    soon = select("2026-11-22 09:59:30")
    assert (list(soon.decisions), soon.tick_in, soon.state) == ([], 30.0, "kept")
    (later,) = select("2026-11-22 11:00:00").decisions
    assert isinstance(later, Reject)
    assert later.retry.delay_min == 23 * 3600


@pytest.mark.parametrize(
    ("windows", "days", "offset", "option"),
    [
        (["9-17"], [], "+00:00", "windows"),
        (["09:00-09:00"], [], "+00:00", "windows"),
        (["09:00-24:30"], [], "+00:00", "windows"),
        ([], [], "+00:00", "windows"),
        (["09:00-17:00"], ["monday"], "+00:00", "days"),
        (["09:00-17:00"], [], "2", "utc_offset"),
        (["09:00-17:00"], [], "+15:00", "utc_offset"),
    ],
)
def test_time_windows_are_checked(windows, days, offset, option):
    with pytest.raises(UsageError, match=option):
        parse_windows(windows, days, offset)


# Through the manager.


def test_the_wrapped_policy_is_chosen_by_name_with_its_own_options(load):
    plugins = load(
        overrides={
            "selection": "time_windows",
            "selection.time_windows.inner": "rate_capped",
            "selection.rate_capped.inner": "uniform",
            "selection.rate_capped.limit": "5",
            "selection.uniform.window": "7s",
        }
    )
    chain = plugins.selection_chain()
    assert [name for name, _ in chain] == ["time_windows", "rate_capped", "uniform"]
    tasks, candidate = [OpenTask("x", "t", 1, 1, 0.0)], Candidate("c", 100.0)
    view = SelectionView([candidate], tasks, 100.0, random.Random(0), None, chain[0][1])
    assert plugins.make_selection_policy().select(view).tick_in == 7.0


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        ({"selection.rate_capped.inner": "unifrom"}, "Did you mean 'uniform'"),
        ({"selection.rate_capped.inner": "rate_capped"}, "rate_capped wraps rate_capped"),
        (
            {
                "selection.rate_capped.inner": "time_windows",
                "selection.time_windows.inner": "rate_capped",
            },
            "rate_capped wraps time_windows wraps rate_capped",
        ),
    ],
)
def test_a_wrapper_around_nothing_stops_the_start(load, overrides, wrong):
    with pytest.raises(UsageError, match=wrong):
        load(overrides={"selection": "rate_capped", **overrides})
