"""The policy lab: the same seed, the same run; nothing is lost; as if done event by event."""

import dataclasses
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcp_core.testing
from fcp_core.errors import UsageError
from fcp_core.lab import (
    DeviceModel,
    Scenario,
    TaskModel,
    draw,
    gini,
    simulate,
    summary,
)
from fcp_core.lab.devices import Devices
from fcp_core.lab.draws import Draws, Purpose
from fcp_core.lab.report import lorenz
from fcp_core.lab.wakes import NEVER, Wakes
from fcp_core.rounds.policies import Assign, RetryWindow, Selection, SelectionPolicy
from fcp_core.rounds.tasks import TaskState

sys.path.insert(0, str(Path(__file__).parent))
from reference_lab import ReferenceLab

sys.path.pop(0)

SMALL = Scenario(
    devices=DeviceModel(count=300),
    tasks=(TaskModel(goal_count=10, deadline=1800.0),),
    hours=4.0,
    retry_accepted=RetryWindow(1800.0, 3600.0),
    retry_rejected=RetryWindow(300.0, 900.0),
)
POLICIES = (
    "fifo",
    "uniform:window=30s",
    "cohort:window=90s",
    "fair_share",
    "weighted:min_candidates=5",
    "rate_capped:limit=30,inner=uniform",
    "time_windows:windows=01:00-03:00",
)


def facts(report):
    """Return everything that a report says, in a form that can be compared."""
    values = dataclasses.asdict(report)
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run():
    first = [facts(report) for report in simulate(*POLICIES, scenario=SMALL, seed=3)]
    assert [facts(report) for report in simulate(*POLICIES, scenario=SMALL, seed=3)] == first
    (other,) = simulate("fifo", scenario=SMALL, seed=4)
    assert facts(other) != first[0]


@pytest.mark.slow
def test_nothing_is_lost():
    """Assigned devices contributed, were dropped, or are at work; every check-in has an outcome."""
    for report in simulate(*POLICIES, scenario=SMALL, seed=1):
        assert report.problems == {}
        for round_ in report.rounds:
            assert round_.assigned == round_.contributed + round_.dropped + round_.pending
            assert (round_.closed is None) == (not round_.state.is_final)
            assert round_.state is not TaskState.COMPLETED or round_.contributed == 10
        assert report.contributed == report.contributions.sum()
        assert report.check_ins.sum() == (
            report.assigned + sum(report.turned_away.values()) + report.waiting
        )
        assert report.completed


SCENARIOS = {
    "one task": SMALL,
    "two tasks, much fails": dataclasses.replace(
        SMALL,
        devices=DeviceModel(count=80, drop_out=0.4, silent=0.7, per_example=2.0),
        tasks=(
            TaskModel("a", goal_count=6, minimum_count=2, deadline=900.0, eligible=0.5),
            TaskModel("b", goal_count=3, over_selection=2.0, start=1234.5, eligible=0.6),
        ),
        hours=10.0,
        assignment_timeout=240.0,
        session_timeout=25.0,
    ),
    "devices that come at once": dataclasses.replace(
        SMALL,
        devices=DeviceModel(count=60, latency=40.0, alignment=300.0),
        retry_rejected=RetryWindow(1.0, 120.0),
        retry_accepted=RetryWindow(0.0, 30.0),
        hours=3.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    "policy",
    [
        "fifo",
        "uniform:window=40s",
        pytest.param("cohort:window=2m", marks=pytest.mark.slow),
        pytest.param("fair_share", marks=pytest.mark.slow),
    ],
)
def test_it_is_as_if_done_event_by_event(name, policy):
    scenario = dataclasses.replace(SCENARIOS[name], step=0.001, start=0.0)
    (report,) = simulate(policy, scenario=scenario, seed=5)
    made = _policy(policy)
    expected = ReferenceLab(scenario, made, 5).run()
    got = [
        (r.task, r.state, r.opened, r.closed, r.assigned, r.contributed, r.pending, r.reasons)
        for r in report.rounds
    ]
    assert got == expected.rounds
    assert len(got) > 3
    assert report.contributions.tolist() == expected.devices.contributions.tolist()
    assert report.turned_away == expected.turned_away
    assert report.late == expected.late
    counts = {second: n for second, n in enumerate(report.check_ins.tolist()) if n}
    assert counts == expected.check_ins


def _policy(text):
    from fcp_core.lab.runner import parse_policy
    from fcp_core.plugins.manager import Plugins

    return Plugins.load(environ={}).make_selection_policy(*parse_policy(text))


@pytest.mark.slow
def test_first_come_first_served_prefers_the_fast():
    """Devices that wake together: who starts fast is served, unless places are drawn."""
    scenario = dataclasses.replace(
        SMALL,
        devices=DeviceModel(count=1000, alignment=900.0, latency=10.0, always=1.0, drop_out=0.0),
        tasks=(TaskModel(goal_count=10, over_selection=1.0),),
        hours=6.0,
        retry_accepted=RetryWindow(900.0, 1800.0),
        retry_rejected=RetryWindow(900.0, 1800.0),
    )
    fifo, uniform, fair = simulate(
        "fifo", "uniform:window=2m", "fair_share:window=2m", scenario=scenario
    )
    for drawn in (uniform, fair):
        assert drawn.gini < fifo.gini
        assert drawn.slow_share > 2 * fifo.slow_share
    assert 0.2 < uniform.slow_share < 0.3


def test_over_selection_ends_rounds_early_and_wastes_work():
    def run(over_selection):
        task = TaskModel(goal_count=10, over_selection=over_selection)
        scenario = dataclasses.replace(SMALL, tasks=(task,))
        return simulate("cohort", scenario=scenario)[0]

    once, twice = run(1.0), run(2.0)
    assert twice.round_time(0.5) < once.round_time(0.5)
    assert twice.waste > once.waste + 0.1
    assert twice.reasons["round_over"] > once.reasons["round_over"]


@pytest.mark.slow
def test_a_rate_cap_and_a_time_window_hold():
    capped, timed = simulate(
        "rate_capped:limit=30,period=1h",
        "time_windows:windows=01:00-03:00",
        scenario=SMALL,
    )
    assert 30 * 3 <= capped.assigned <= 30 * 4
    assert timed.completed
    assert all(3600 <= r.closed <= 3 * 3600 + 1800 for r in timed.completed)


def test_policies_of_one_s_own_and_their_mistakes():
    class Twice(SelectionPolicy):
        """Gives everybody the first task, twice."""

        def select(self, view):
            task = view.tasks[0].task_id
            chosen = view.candidates[: view.tasks[0].capacity]
            return Selection([Assign(c.id, task) for c in chosen for _ in range(2)])

    (report,) = fcp_core.testing.simulate(Twice(), scenario=SMALL)
    assert report.policy == "Twice"
    assert report.completed
    assert all("decided about before" in problem for problem in report.problems)
    assert report.problems


def test_pacing_may_be_somebody_else_s():
    loads = []

    def slow(accepted, load, now):
        loads.append(load)
        return RetryWindow(3600.0, 7200.0)

    usual, slower = (
        simulate("fifo", scenario=SMALL, pacing=pacing)[0].mean_load for pacing in (None, slow)
    )
    assert slower < usual / 2
    assert {"open_tasks", "missing", "waiting", "check_in_rate"} == set(loads[0])
    assert max(load["check_in_rate"] for load in loads) > 0


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: DeviceModel(count=0), "1,000,000"),
        (lambda: DeviceModel(drop_out=1.5), "drop_out"),
        (lambda: DeviceModel(latency=float("nan")), "latency"),
        (lambda: TaskModel(goal_count=0), "goal"),
        (lambda: TaskModel(goal_count=3, minimum_count=4), "minimum_count"),
        (lambda: Scenario(tasks=(TaskModel(), TaskModel())), "a name of its own"),
        (lambda: Scenario(retry_rejected=RetryWindow(5.0, 1.0)), "retry window"),
        (lambda: Scenario(hours=0), "hours"),
        (lambda: simulate("fifi"), "Did you mean 'fifo'"),
        (lambda: simulate("uniform:windw=3s"), "windw"),
        (lambda: simulate("uniform:window"), "NAME:OPTION=VALUE"),
    ],
)
def test_mistakes_are_told(make, wrong):
    with pytest.raises(UsageError, match=wrong):
        make()


# Parts.

MODELS = st.builds(
    DeviceModel,
    count=st.integers(1, 40),
    always=st.sampled_from([0.0, 0.3, 1.0]),
    alignment=st.sampled_from([0.0, 60.0, 900.0]),
    latency=st.sampled_from([0.0, 3.0]),
)


@given(MODELS, st.integers(0, 2**40), st.lists(st.floats(0, 1e5), min_size=1, max_size=5))
@settings(max_examples=50)
def test_a_device_behaves_the_same_alone_and_among_others(model, seed, times):
    window = RetryWindow(10.0, 10_000.0)
    alone, together = (Devices(model, seed, 1e9) for _ in range(2))
    everyone = np.arange(model.count)
    for at in times:
        one_by_one = [alone.come_back(device, at, window) for device in range(model.count)]
        after = np.full(model.count, at)
        assert together.come_back_all(everyone, after, window).tolist() == one_by_one
        assert min(one_by_one) >= at + 10.0


@given(st.integers(0, 2**70), st.lists(st.integers(0, 2**20), min_size=1), st.integers(0, 2**31))
def test_draws_are_the_same_alone_and_together(seed, devices, count):
    draws = Draws(seed)
    counts = np.full(len(devices), count, np.uint32)
    together = draws.many(Purpose.DELAY, np.array(devices, np.int64), counts)
    assert together.tolist() == [draws.one(Purpose.DELAY, d, count) for d in devices]
    assert all(0 <= number < 1 for number in together)


def test_draws_are_spread_evenly():
    """A hundred thousand numbers in twenty boxes: within five deviations, for each purpose."""
    everyone = np.arange(100_000, dtype=np.int64)
    for purpose in Purpose:
        numbers = Draws(7).many(purpose, everyone, np.zeros(len(everyone), np.uint32))
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert np.all(np.abs(counts - 5000) < 5 * (5000 * 0.95) ** 0.5)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20),
    st.integers(1, 20),
    st.lists(st.integers(0, 12), max_size=30),
    st.booleans(),
)
def test_wakes_come_in_order_and_none_is_lost(first, span, delays, in_arrays):
    wakes, expected = Wakes(np.array(first), span), Counter(enumerate(first))
    delays, seen, last = list(delays), Counter(), -1
    while (step := wakes.peek(500)) < NEVER:
        devices, steps = wakes.take(step)
        assert len(devices)
        assert set(steps.tolist()) == {step}
        assert step > last or sorted(devices.tolist()) == devices.tolist()
        last = step
        seen.update(zip(devices.tolist(), steps.tolist(), strict=True))
        for device in devices.tolist():
            if delays:
                again = step + 1 + delays.pop()
                expected[device, again] += 1
                if in_arrays:
                    wakes.put_all(np.array([device]), np.array([again]))
                else:
                    wakes.put(device, again)
    assert seen == expected


def test_gini_and_lorenz_of_known_counts():
    equal, one = np.full(10, 3, np.uint32), np.array([0] * 9 + [5], np.uint32)
    assert gini(equal) == pytest.approx(0.0)
    assert gini(one) == pytest.approx(0.9)
    assert gini(np.array([1, 3], np.uint32)) == pytest.approx(0.25)
    assert gini(np.zeros(4, np.uint32)) == 0.0
    assert lorenz(np.array([3, 1], np.uint32)) == [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_gini_is_the_mean_difference(counts):
    values = np.array(counts, np.uint32)
    differences = np.abs(values[:, None].astype(float) - values[None, :]).mean()
    expected = differences / (2 * values.mean()) if values.any() else 0.0
    assert gini(values) == pytest.approx(expected)


def test_devices_are_like_their_model():
    model = DeviceModel(count=50_000, drop_out=0.1, examples=40.0, zones=((3.0, 1.0),))
    devices = Devices(model, 1, 0.0)
    assert abs(devices.drop_outs.mean() - 0.1) < 0.005
    assert abs(np.median(devices.examples) - 40) <= 2
    # At 1 in the morning local time most are awake, at noon those that always are.
    assert devices.available(22 * 3600.0) > 0.9
    assert abs(devices.available(9 * 3600.0) - model.always) < 0.02


def test_a_plot_stays_on_its_page():
    """Every element lies on the page, and each policy has its line in each panel of lines."""
    reports = simulate("fifo", "uniform:window=30s", scenario=SMALL)
    root = ET.fromstring(draw(reports, "a < b & c"))
    width, height = float(root.get("width")), float(root.get("height"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points") for line in root.iter(f"{space}polyline")]
    assert len(lines) == 2 * 3
    assert len(list(root.iter(f"{space}rect"))) == 1 + 2 + 2 * 3
    assert "a < b & c" in [text.text for text in root.iter(f"{space}text")]
    for group in root.iter(f"{space}g"):
        x, y = map(float, re.findall(r"[\d.]+", group.get("transform")))
        for line in group.iter(f"{space}polyline"):
            for point in line.get("points").split():
                left, top = map(float, point.split(","))
                assert 50 <= left <= 447
                assert 33 <= top <= 257
                assert x + left <= width
                assert y + top <= height
        for bar in group.iter(f"{space}rect"):
            assert float(bar.get("y")) + float(bar.get("height")) == pytest.approx(256, abs=0.2)


def test_a_plot_of_nothing_is_empty():
    (report,) = simulate("fifo", scenario=dataclasses.replace(SMALL, hours=0.01))
    assert report.completed == ()
    assert report.round_time(0.5) is None
    assert report.waste == report.gini == 0.0
    assert ET.fromstring(draw([report], "nothing")).tag.endswith("svg")
    assert summary(report)[3] == ""
