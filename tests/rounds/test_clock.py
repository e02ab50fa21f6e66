"""The server's clock, on a machine whose date somebody sets."""

import pytest

from fcp_core.rounds.machine import SLEW, SystemClock
from fcp_core.server.services.ticker import Ticker


class Machine:
    """A date and a steady clock that move together until the date is set."""

    def __init__(self):
        self.date = 1_700_000_000.0
        self.steady = 1000.0
        self.clock = SystemClock(lambda: self.date, lambda: self.steady)

    def sleep(self, seconds):
        self.date += seconds
        self.steady += seconds


@pytest.mark.parametrize("step", [3600.0, -3600.0, 1e9, -1e9])
def test_a_step_of_the_date_moves_no_deadline(step):
    machine = Machine()
    ticker, called = Ticker(machine.clock), []
    ticker.at("deadline", machine.clock.now() + 600, called.append)
    machine.date += step
    for _ in range(599):
        machine.sleep(1)
        ticker.run_due()
    assert called == []
    machine.sleep(2)
    ticker.run_due()
    assert len(called) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [60.0, -60.0])
def test_the_date_becomes_right_and_time_never_goes_back(step):
    machine = Machine()
    machine.date += step
    before = machine.clock.now()
    for _ in range(int(abs(step) / SLEW) + 1):
        machine.sleep(1)
        now = machine.clock.now()
        assert now > before
        before = now
    assert now == pytest.approx(machine.date, abs=1e-3)


def test_without_steps_it_is_the_date():
    machine = Machine()
    for _ in range(100):
        machine.sleep(3.7)
        assert machine.clock.now() == pytest.approx(machine.date, abs=1e-6)


def test_a_steady_clock_that_is_not_does_no_harm():
    machine = Machine()
    before = machine.clock.now()
    machine.steady -= 5
    assert machine.clock.now() == before


def test_who_follows_another_one_shows_its_date_at_once_and_comes_to_no_step_of_either():
    machine, other = Machine(), 1_700_003_600.0
    machine.clock.follow(other)
    for step in (0.0, 3600.0, -3600.0):
        machine.date += step  # as somebody sets it right
        for _ in range(100):
            machine.sleep(2)
            other += 2
            machine.clock.follow(other)
            assert machine.clock.now() == pytest.approx(other, abs=1e-3)
    before = machine.clock.now()
    machine.clock.follow(other - 3600)
    machine.sleep(2)
    assert machine.clock.now() == pytest.approx(before + 2, rel=0, abs=2 * SLEW + 1e-6)
