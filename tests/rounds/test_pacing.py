"""The account that pace steering goes by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.rounds.pacing import HORIZON, SLOT, CheckInRate, Pace, window_message
from fcp_core.rounds.policies import RetryWindow

START = 1_000_000_000.0


def test_the_rate_is_that_of_the_last_minute():
    rate = CheckInRate()
    rate.count(START, 30)
    rate.count(START + 30)
    assert rate.rate(START + 30) == pytest.approx(31 / 60)
    assert rate.rate(START + 61) == pytest.approx(1 / 60)
    assert rate.rate(START + 200) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3e5), st.floats(0, 5e4), st.floats(0, 5e4), st.integers(1, 50)),
        max_size=20,
    )
)
def test_every_device_with_a_window_is_counted_until_it_comes(steps):
    pace, now, given_out = Pace(), START, 0
    for delay, low, width, number in steps:
        pace.handed_out(RetryWindow(low, low + width), now, number)
        given_out += number
        assert pace.population_size(now) >= 0
        assert (pace.forecast(1.0, now) >= 0).all()
        if delay < 600:
            now += delay
    fresh = Pace()
    for _, low, width, number in steps:
        fresh.handed_out(RetryWindow(low, low + width), START, number)
    assert fresh.population_size(START) == pytest.approx(given_out)
    assert fresh.forecast(1.0, START).sum() == pytest.approx(given_out)


def test_devices_that_come_when_they_are_due_stay_one_population():
    pace, now = Pace(), START
    for _ in range(500):
        pace.came(now, 10)
        pace.handed_out(RetryWindow(1800, 1800), now, 10)
        now += SLOT
    assert pace.population_size(now) == pytest.approx(300, rel=0.05)
    assert pace.recent(600, now) == 90  # nine whole slots and the one that has just begun
    assert pace.rate(now - 1) == pytest.approx(10 / 60)


def test_sleeping_devices_are_remembered_and_at_last_forgotten():
    pace = Pace()
    pace.handed_out(RetryWindow(60, 60), START, 1000)
    assert pace.population_size(START + 6 * 3600) == pytest.approx(1000, rel=0.15)
    assert pace.population_size(START + 30 * 86400) < 1


def test_the_near_future_is_scaled_with_the_share_that_comes():
    pace, now = Pace(), START // SLOT * SLOT
    pace.handed_out(RetryWindow(0, 3 * 86400 - 1), now, 4320_00)
    for _ in range(20):
        pace.came(now, 50)
        now += SLOT
    forecast = pace.forecast(10.0, now)
    assert forecast[1] == pytest.approx(50, rel=0.1)
    assert forecast[1000] == pytest.approx(100, rel=0.1)


def test_a_surplus_is_expected_to_go_on_and_a_herd_is_not():
    pace, now = Pace(), START // SLOT * SLOT
    for _ in range(20):
        pace.came(now, 600)
        now += SLOT
    usual = pace.forecast(10.0, now)
    herd = pace.forecast(1.0, now)
    assert usual[0] == herd[0] == pytest.approx(600)
    assert usual[60] > 400
    assert herd[60] < 70
    assert usual[-1] < 1


def test_needs_are_remembered_between_rounds():
    pace = Pace()
    assert pace.needs(100, START) == 100
    assert 80 < pace.needs(0, START + 60) < 100
    assert pace.needs(30, START + 3600) == 30


def test_a_clock_that_jumps_is_survived():
    pace = Pace()
    pace.handed_out(RetryWindow(0, 86400), START, 10)
    for now in (START + 1e9, START, START + 2e9, START + 2e9 + HORIZON * SLOT):
        pace.came(now)
        pace.handed_out(RetryWindow(100, 200), now)
        assert np.isfinite(pace.forecast(1.0, now)).all()
        assert pace.population_size(now) >= 0


def test_a_window_is_booked_anew_unless_it_has_begun():
    early, late = RetryWindow(120.0, 180.0), RetryWindow(7200.0, 7260.0)
    for told, moved in ((119.0, True), (120.0, False)):
        pace, wanted = Pace(), Pace()
        pace.handed_out(early, 1e6, 5)
        pace.instead(early, late, 1e6, 1e6 + told)
        if moved:
            wanted.handed_out(early, 1e6, 4)
            wanted.handed_out(late, 1e6)
        else:
            wanted.handed_out(early, 1e6, 5)
        now = 1e6 + 120
        expected = [each.forecast(1.0, now) for each in (pace, wanted)]
        np.testing.assert_allclose(*expected, atol=1e-9)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_windows_go_over_the_wire_to_the_nanosecond(low, high):
    message = window_message(RetryWindow(low, high))
    for want, got in ((low, message.delay_min), (high, message.delay_max)):
        assert got.seconds + got.nanos / 1e9 == pytest.approx(want, abs=1e-9, rel=1e-12)
        assert 0 <= got.nanos < 10**9


def test_the_rate_of_check_ins_is_of_the_last_minute():
    rate = CheckInRate()
    for second in range(120):
        rate.count(second)
        rate.count(second + 0.5)
    assert rate.rate(119.9) == 2.0
    assert rate.rate(178.9) == pytest.approx(1 / 30)
    assert rate.rate(1000.0) == 0.0
