"""What is known of devices: how many are needed, how long they may be silent, and of whom."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.status import Code
from fcp_core.rounds.experience import SHORTEST, WORDLESS, Experience, Experiences, Senders
from fcp_core.rounds.failures import Failures
from fcp_core.rounds.task import bring, devices_for, drop_outs, learn, patience


def share_of(goal, devices, drop_outs):
    """How probable it is that so many devices bring the goal."""
    good = 1 - drop_outs
    return sum(
        math.comb(devices, k) * good**k * drop_outs ** (devices - k)
        for k in range(goal, devices + 1)
    )


@pytest.mark.parametrize(
    ("missing", "devices"), [(0, 0), (1, 1), (2, 3), (3, 4), (10, 12), (100, 115), (1000, 1122)]
)
def test_at_first_one_device_in_ten_is_expected_to_drop_out(missing, devices):
    assert devices_for(missing, drop_outs(Experience())) == devices


def test_the_devices_asked_for_suffice_in_most_rounds():
    for goal in (1, 3, 10, 30, 100):
        asked = devices_for(goal, drop_outs(Experience()))
        assert 0.8 < share_of(goal, asked, 0.1) < 0.97


def test_the_number_of_devices_follows_the_drop_outs_and_is_bounded():
    known = Experience()
    for _ in range(300):
        bring(known, Senders(), ())
    assert drop_outs(known) < 0.01
    assert devices_for(100, drop_outs(known)) == 101
    for number in range(1000):
        known.lose() if number % 3 == 0 else bring(known, Senders(), ())
    assert 0.3 < drop_outs(known) < 0.36
    assert devices_for(100, drop_outs(known)) in range(150, 170)
    for _ in range(3000):
        known.lose()
    assert devices_for(100, drop_outs(known)) == 200
    for _ in range(2000):
        known.find()
    assert 0 <= drop_outs(known) <= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.integers(0, 100))
def test_who_takes_as_long_as_all_others_is_never_overdue(times, silent):
    known = Experience(first=50.0)
    assert patience(known, 0, silent) == 50.0
    for seconds in times:
        learn(known, 0, seconds)
    allowed = patience(known, 0, silent)
    assert allowed >= SHORTEST
    assert allowed >= sum(times) / len(times) * 0.999
    if silent > len(times):
        assert allowed >= 50.0


def test_the_patience_is_that_of_most_devices():
    rng = random.Random(5)
    known = Experience()
    for _ in range(500):
        learn(known, 0, 60 * rng.lognormvariate(0, 0.5))
    allowed = patience(known, 0, 10)
    late = sum(60 * rng.lognormvariate(0, 0.5) > allowed for _ in range(10_000))
    assert 60 < allowed < 400
    assert late < 300


def test_each_name_has_its_own_and_names_are_forgotten():
    known = Experiences(3)
    one = known.of("a", 7.0, False)
    learn(one, 0, 2.0)
    assert known.of("a", 8.0, False) is one
    assert one.first == 8.0
    assert known.of("query", 100.0, True).first == WORDLESS
    assert known.of("query", 3.0, True).first == 3.0
    for number in range(1000):
        known.of(f"n{number}", 1.0, False)
    assert known.of("a", 8.0, False) is not one


def test_a_sender_may_have_as_many_silent_places_as_allowed_or_as_it_brought_contributions():
    senders = Senders(2)
    attacker, router = ("address 1",), ("address 2", "key fleet")
    for _ in range(2):
        assert senders.trusts(attacker)
        senders.fell_silent(attacker)
    assert not senders.trusts(attacker)
    assert senders.trusts(router)
    for _ in range(5):
        bring(Experience(), senders, router)
    for _ in range(4):
        senders.fell_silent(router)
    assert senders.trusts(router)
    # Silence that ends costs what was shown; a device that comes after all does not.
    senders.left(router)
    senders.spoke(router)
    assert senders.trusts(router)
    for _ in range(2):
        senders.fell_silent(router)
    assert not senders.trusts(router)
    # One name that is not trusted is enough.
    assert not senders.trusts(("address 3", "key fleet"))
    assert senders.trusts(())
    senders.left(attacker)
    assert senders.trusts(attacker)


def test_no_limit_is_none():
    senders = Senders(0)
    for _ in range(50):
        senders.fell_silent(("address 1",))
    assert senders.trusts(("address 1",))


def test_failures_count_while_they_are_alike():
    failures = Failures(3)
    for _ in range(2):
        failures.take((), "computation", Code.INTERNAL, "no\nsuch op")
        # That one went away says nothing of the task.
        failures.take((), "insufficient_data", Code.FAILED_PRECONDITION, "")
        assert not failures.enough
    failures.take((), "computation", Code.INTERNAL, "")
    assert failures.enough
    assert failures.code is Code.INTERNAL
    assert str(failures) == (
        "its first 3 devices all failed alike (computation INTERNAL: no\\nsuch op)"
    )
    other = Failures(3)
    for code in (Code.INTERNAL, Code.ABORTED, *[Code.INTERNAL] * 5):
        other.take((), "submit", code, "")
    assert not other.enough


def test_nobody_alone_can_fail_a_task():
    failures = Failures(4)
    for _ in range(20):
        failures.take(("address 1",), "computation", Code.INTERNAL, "")
    assert not failures.enough
    for _ in range(2):
        failures.take(("address 2",), "computation", Code.INTERNAL, "")
    assert failures.enough


def test_no_limit_of_failures():
    failures = Failures(0)
    failures.take((), "computation", Code.INTERNAL, "")
    assert not failures.enough
