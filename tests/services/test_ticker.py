"""The one timer of the services."""

import asyncio
import sys

import pytest

from fcp_core.rounds.machine import ManualClock, SystemClock
from fcp_core.server.services.ticker import Ticker


def test_it_calls_back_in_order_what_is_due_and_nothing_else():
    clock, calls = ManualClock(0.0), []
    ticker = Ticker(clock)
    for key, when in (("b", 2.0), ("a", 1.0), ("later", 9.0), ("moved", 1.0), ("gone", 1.0)):
        ticker.at(key, when, lambda now, key=key: calls.append((key, now)))
    ticker.at("moved", 3.0, lambda now: calls.append(("moved", now)))
    ticker.at("gone", None, lambda now: None)
    clock.advance(1.999)
    ticker.run_due()
    assert calls == [("a", 1.999)]
    clock.advance(2.0)
    ticker.run_due()
    assert [key for key, _ in calls] == ["a", "b", "moved"]


@pytest.mark.parametrize("fault", [lambda now: 1 / 0, sys.exit])
def test_a_failing_callback_stops_no_other(caplog, fault):
    clock, calls = ManualClock(0.0), []
    ticker = Ticker(clock)
    ticker.at("bad:1", 1.0, fault)
    ticker.at("good", 1.0, calls.append)
    clock.advance(1.0)
    ticker.run_due()
    assert calls == [1.0]
    assert "bad" in caplog.text


def test_a_wish_for_now_waits_for_the_next_turn():
    clock, calls = ManualClock(0.0), []
    ticker = Ticker(clock)

    def again(now):
        calls.append(now)
        ticker.at("again", now, again)

    ticker.at("again", 0.0, again)
    ticker.run_due()
    assert calls == [0.0]


def test_it_wakes_by_itself_and_sleeps_when_nothing_is_due():
    async def main():
        ticker, clock = Ticker(SystemClock()), SystemClock()
        woken = asyncio.Event()
        ticker.at("x", clock.now() + 0.01, lambda now: woken.set())
        ticker.start()
        await asyncio.wait_for(woken.wait(), 30)
        assert ticker._timer is None
        ticker.at("y", clock.now() + 1000, lambda now: None)
        assert ticker._timer is not None
        ticker.stop()
        assert ticker._timer is None

    asyncio.run(main())
