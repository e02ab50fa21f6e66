"""How much one key or one network may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.rates import RateLimit, RateLimitError, address_key
from tests.server.servers import Time


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60))
def test_no_more_than_the_burst_and_the_rate_get_through(requests):
    time = Time()
    limit = RateLimit("address", 2.0, 3, time=time)
    passed = {"a": [], "b": []}
    for key, pause in requests:
        time.now += pause
        try:
            limit.take(key)
        except RateLimitError as error:
            # Who waits as long as it is told is let through.
            later = RateLimit("address", 2.0, 3, time=time)
            later._buckets.update(limit._buckets)
            time.now, before = time.now + error.wait, time.now
            later.take(key)
            time.now = before
        else:
            passed[key].append(time.now)
    for times in passed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                span = times[last] - times[first]
                assert last - first + 1 <= 3 + 2.0 * span + 1e-6


def test_a_refusal_says_how_long_to_wait():
    limit = RateLimit("address", 0.25, 1, time=Time())
    limit.take("a")
    with pytest.raises(RateLimitError, match="come back in 4 s") as caught:
        limit.take("a")
    assert (caught.value.http, caught.value.wait) == (429, 4)


def test_buckets_are_bounded_and_off_by_default():
    limit = RateLimit("address", 1.0, 1, bound=100, time=Time())
    for number in range(1000):
        limit.take(str(number))
    assert len(limit) == 100
    with pytest.raises(RateLimitError):
        limit.take("999")
    off = RateLimit("address", 0.0, 1)
    for _ in range(1000):
        off.take("x")
    assert len(off) == 0


def test_addresses_of_one_network_are_one():
    assert address_key("2001:db8:1:2::1") == address_key("2001:db8:1:2:ffff::9")
    assert address_key("2001:db8:1:2::1") != address_key("2001:db8:1:3::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1") != address_key("10.0.0.2")
    assert address_key("fe80::1%eth0") == address_key("fe80::1")
    assert address_key("/run/socket") == "/run/socket"


CALL = "/v1/eligibilityevaltasks/p:request?%24alt=proto"


@pytest.mark.parametrize("what", ["address", "key"])
def test_who_asks_too_often_is_told_when_to_come_back(make_front, http, what, caplog):
    front = make_front(**{f"rate_per_{what}": 0.001, f"burst_per_{what}": 3})
    head = http.head(CALL, Content_Length=0, X_Goog_Api_Key="k")
    assert [front.ask(head).status for _ in range(3)] == [501] * 3  # no such service here
    reply = front.ask(head)
    assert (reply.status, reply.error[0]) == (429, Code.RESOURCE_EXHAUSTED)
    assert int(reply.headers["Retry-After"]) > 900
    other = front.ask(http.head(CALL, Content_Length=0, X_Goog_Api_Key="other"))
    assert other.status == (501 if what == "key" else 429)
    # The operator is told as well, but not each time.
    assert front.ask(head).status == 429
    said = [line for line in caplog.messages if f"(rate_per_{what})" in line]
    assert len(said) == 1
    assert said[0].startswith("a device is turned away: ")
    if what == "address":
        assert front.ask(http.head("/data/x/y", "GET"), method="GET").status == 429
    assert front.ask(http.head("/healthz", "GET"), method="GET").status == 200


@pytest.mark.parametrize(
    ("rates", "bursts"),
    [
        ({}, (100, 1000)),
        ({"rate_per_address": 2, "rate_per_key": 50}, (100, 1000)),
        ({"rate_per_address": 25.05, "rate_per_key": 200}, (251, 2000)),
    ],
)
def test_a_burst_follows_from_its_rate(rates, bursts):
    limits = Limits.from_config(Plugins.load(environ={}, overrides=rates).config)
    assert (limits.burst_per_address, limits.burst_per_key) == bursts
