"""Devices come back at times that are spread evenly over the windows that they were given."""

from __future__ import annotations

import random

import pytest

from fcp_core.client.retry import RetrySchedule
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2
from fcp_core.protocol.status import Code

NOW = 1_000_000.0
DEVICES = 2000
HOUR = 3600.0
#: The Kolmogorov-Smirnov bound that even draws stay within but one time in ten thousand; the
#: draws are seeded, so that they do always or never.
BOUND = 2.23 / DEVICES**0.5


def response(accepted, rejected):
    message = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse()
    for window, (low, high) in (
        (message.retry_window_if_accepted, accepted),
        (message.retry_window_if_rejected, rejected),
    ):
        for duration, seconds in ((window.delay_min, low), (window.delay_max, high)):
            duration.seconds = int(seconds)
            duration.nanos = round((seconds - int(seconds)) * 1e9)
    return message


def times(end, accepted=(100.5, 200.25), rejected=(1000, 1000.5)):
    """Return after how many seconds each of many devices comes back, which all end in one way."""
    rng = random.Random(11)
    found = []
    for _ in range(DEVICES):
        schedule = RetrySchedule(lambda: NOW, rng)
        if accepted is not None:
            schedule.receive(response(accepted, rejected))
        end(schedule)
        found.append(schedule.retry_at() - NOW)
    return found


def distance(values, low, high):
    """Return how far values are from even over a window: the Kolmogorov-Smirnov statistic."""
    assert low <= min(values)
    assert max(values) <= high
    worst = 0.0
    for index, value in enumerate(sorted(values)):
        share = (value - low) / (high - low)
        worst = max(worst, abs(share - index / len(values)), abs(share - (index + 1) / len(values)))
    return worst


@pytest.mark.parametrize(
    ("end", "low", "high"),
    [
        (lambda schedule: schedule.accept(), 100.5, 200.25),
        (lambda schedule: schedule.reject(), 1000, 1000.5),
        (lambda schedule: schedule.fail(Code.UNAVAILABLE), 1000, 1000.5),
        (lambda schedule: schedule.fail(Code.NOT_FOUND), 0.8 * 4 * HOUR, 1.2 * 4 * HOUR),
        (lambda schedule: schedule.fail_permanently(), 0.8 * 4 * HOUR, 1.2 * 4 * HOUR),
    ],
    ids=["accepted", "rejected", "failed", "not found", "permanent"],
)
def test_draws_are_even_over_the_window(end, low, high):
    assert distance(times(end), low, high) < BOUND


def test_draws_without_windows_are_even_too():
    drawn = times(lambda schedule: schedule.fail(Code.UNAVAILABLE), accepted=None)
    assert distance(drawn, 720, 1080) < BOUND


def test_uneven_draws_break_the_bound():
    even = [100 * (index + 0.5) / DEVICES for index in range(DEVICES)]
    assert distance(even, 0, 100) < BOUND
    shortest, longest = [0.0] * DEVICES, [100.0] * DEVICES
    early = [value**2 / 100 for value in even]
    narrow = [25 + value / 2 for value in even]
    for uneven in (shortest, longest, early, narrow):
        assert distance(uneven, 0, 100) > BOUND


def test_the_draws_of_one_device_have_nothing_to_do_with_each_other():
    """Else who is early once is always early, and meets the same devices again."""
    rng = random.Random(5)
    pairs = []
    for _ in range(DEVICES):
        schedule = RetrySchedule(lambda: NOW, rng)
        schedule.receive(response((0, 1), (0, 1)))
        rejected = schedule.retry_at() - NOW
        schedule.accept()
        pairs.append((schedule.retry_at() - NOW - 0.5, rejected - 0.5))
    covariance = sum(one * other for one, other in pairs) / DEVICES
    assert abs(covariance * 12) < 4 / DEVICES**0.5


def test_clients_without_a_seed_draw_differently(server, make_client):
    """They are devices of one fleet, which must not all come back together."""
    answer = server.eligibility_response()
    answer.rejection_info.SetInParent()
    server.script[server.eligibility] = answer
    found = {round(make_client(rng=None).run_once().retry_after) for _ in range(8)}
    assert len(found) > 2
    assert all(900 < seconds <= 2000 for seconds in found)
