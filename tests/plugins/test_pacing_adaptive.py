"""Pace steering: the policy, alone and against a simulated population."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.pacing import Pace
from fcp_core.rounds.policies import RetryWindow
from fcp_plugins.pacing_adaptive import MIN_DELAY, choose_window

NOW = 1_000_000_040.0
OPTIONS = {"target_rate": 10.0}


def load_of(pace, needs=0.0):
    return {"pace": pace, "needs": needs, "population_size": pace.population_size(NOW)}


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "benchmarks" / "pacing_simulation.py"
    spec = importlib.util.spec_from_file_location("pacing_simulation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_small_population_gets_a_common_time_and_keeps_to_the_rate():
    pace = Pace()
    pace.handed_out(RetryWindow(600, 700), NOW, 300)
    windows = []
    for later in (0, 30, 60):
        load = {**load_of(pace), "population_size": 300.0}
        window = choose_window(load, OPTIONS, NOW + later)
        windows.append((NOW + later + window.delay_min, NOW + later + window.delay_max))
        assert window.delay_min >= MIN_DELAY
    assert len(set(windows)) == 1
    (begin, end), *_ = windows
    assert begin % 240 == pytest.approx(0)
    assert end - begin == pytest.approx(30)  # 300 devices at 10 a second


def test_a_large_population_is_sent_to_the_first_minute_with_room():
    pace = Pace()
    pace.came(NOW)
    windows = []
    for _ in range(4000):
        window = choose_window({**load_of(pace), "population_size": 1e6}, OPTIONS, NOW)
        pace.handed_out(window, NOW)
        windows.append(window)
    assert windows[0] == RetryWindow(160.0, 220.0)  # the first whole minute after two
    starts = [window.delay_min for window in windows]
    assert starts == sorted(starts)
    counts = {start: starts.count(start) for start in starts}
    assert all(count <= 601 for count in counts.values())


def test_a_population_too_large_for_the_rate_is_spread_over_the_longest_delay():
    pace = Pace()
    pace.handed_out(RetryWindow(0, 86400), NOW, 10_000_000)
    assert choose_window(load_of(pace), OPTIONS, NOW) == RetryWindow(43200.0, 86400.0)


@pytest.mark.parametrize("size", [300.0, 1e6])
@pytest.mark.parametrize("soonest", [0.0, 60.0, 5000.0, 86400.0, 1e9])
def test_nobody_comes_before_policies_want_them(size, soonest):
    pace = Pace()
    pace.came(NOW)
    load = {**load_of(pace), "population_size": size, "not_before": soonest}
    window = choose_window(load, OPTIONS, NOW)
    least = max(MIN_DELAY, min(soonest, 2 * 86400.0 - 120))
    assert least <= window.delay_min < least + 240 + 60
    assert window.delay_min < window.delay_max


def test_without_a_target_the_tasks_needs_decide():
    options = {**OPTIONS, "target_rate": None}
    pace = Pace()
    busy = choose_window({**load_of(pace, needs=600.0), "population_size": 300.0}, options, NOW)
    calm = choose_window({**load_of(pace, needs=60.0), "population_size": 300.0}, options, NOW)
    assert busy.delay_max - busy.delay_min == pytest.approx(30)
    assert calm.delay_max - calm.delay_min < 61


def test_it_is_off_unless_enabled_for_the_population():
    plugins = Plugins.load(
        environ={},
        working_folder="/",
        overrides={
            "retry_min": "5s",
            "retry_max": "6s",
            "population:steered.pacing.adaptive.enabled": "yes",
            "population:steered.pacing.adaptive.target_rate": "10",
        },
    )
    pace = Pace()
    pace.handed_out(RetryWindow(0, 86400), NOW, 100_000)
    fixed = plugins.retry_window("p", accepted=True, load=load_of(pace), now=NOW)
    steered = plugins.retry_window("steered", accepted=True, load=load_of(pace), now=NOW)
    assert fixed == RetryWindow(5.0, 6.0)
    assert steered.delay_min > 100


@pytest.mark.slow
@pytest.mark.parametrize("forget", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_diurnal_population_comes_at_the_target_rate_before_and_after_an_outage(
    simulation, forget
):
    outage = (86400.0 + 20 * 3600, 86400.0 + 23 * 3600)
    run = simulation.simulate(
        devices=50_000, rate=5.0, days=2.5, outage=outage, seed=3, forget=forget, together=25
    )
    smooth = run.rate.reshape(-1, 10).mean(axis=1).repeat(10)  # few devices, much noise
    smoothed = simulation.Run(smooth, run.size)
    rates = simulation.judged(smoothed, outage, learning=12 * 3600, drain=2400)
    assert rates.min() > 0.8 * 5
    assert rates.max() < 1.2 * 5
    assert run.size[-1] == pytest.approx(50_000, rel=0.15)


@pytest.mark.slow
def test_without_steering_the_herd_comes_back(simulation, monkeypatch):
    """The bounds above can be missed: a fixed window fails them."""
    monkeypatch.setattr(
        simulation, "choose_window", lambda load, options, now: RetryWindow(9000.0, 10000.0)
    )
    outage = (86400.0 + 20 * 3600, 86400.0 + 23 * 3600)
    run = simulation.simulate(devices=50_000, rate=5.0, days=2.5, outage=outage, together=50)
    rates = simulation.judged(run, outage, learning=12 * 3600, drain=2400)
    assert rates.max() > 2 * 5
