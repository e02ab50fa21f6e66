"""Many at once in the local engine: each contribution counts once, or leaves no trace."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import Fold, Partial
from fcp_core.protocol.status import Code
from tests.aggregation.engine_jobs import FACTORIES, JOB, LOCAL, MODES, blob, code_of, result


class Gate(SumAccumulator):
    """A sum whose accumulation waits until the test lets it go on."""

    entered = threading.Semaphore(0)
    leave = threading.Semaphore(0)

    def accumulate(self, inputs):
        Gate.entered.release()
        assert Gate.leave.acquire(timeout=60)
        super().accumulate(inputs)


@pytest.fixture
def gated():
    gate = AggregatorFactory(
        "federated_sum", frozenset({"federated_sum"}), "gated",
        lambda intrinsic, options: Gate(intrinsic),
        Gate.load,
    )  # fmt: skip
    engine = LOCAL.make(
        FACTORIES | {"federated_sum": gate},
        {"workers": 2, "inline_bytes": 0, "inline_added_bytes": 0},
    )
    engine.start()
    yield engine
    engine.stop()


def enter(count):
    for _ in range(count):
        assert Gate.entered.acquire(timeout=60)


def test_two_contributions_of_one_session_are_folded_at_once(gated):
    folding = gated.open(JOB)
    futures = [folding.add(str(number), blob(number)) for number in range(3)]
    # Both threads are inside at the same time, or this waits for ever.
    enter(2)
    report = folding.report()
    assert not report.done()
    Gate.leave.release(3)
    enter(1)
    assert [future.result(timeout=60) for future in futures] == [None] * 3
    assert result(report.result(timeout=60))["sum"] == [111, 3]


def test_a_contribution_that_is_cancelled_before_its_turn_leaves_no_trace(gated):
    folding = gated.open(JOB)
    running = [folding.add(str(number), blob(number)) for number in range(2)]
    enter(2)
    waiting = folding.add("2", blob(2))
    assert waiting.cancel()
    assert not running[0].cancel()
    report = folding.report()
    Gate.leave.release(2)
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    assert result(report.result(timeout=60))["sum"] == [11, 2]


def test_an_abort_reaches_what_waits(gated):
    folding = gated.open(JOB)
    running = [folding.add(str(number), blob(number)) for number in range(2)]
    enter(2)
    waiting = folding.add("2", blob(2))
    report = folding.report()
    folding.abort()
    Gate.leave.release(2)
    assert code_of(waiting) is Code.ABORTED
    assert code_of(report) is Code.ABORTED
    assert all(future.exception(timeout=60) is None for future in running)


def test_many_threads_may_use_one_fold():
    engine = LOCAL.make(FACTORIES, {"workers": 2, "inline_bytes": 1 << 20})
    engine.start()
    folding = engine.open(JOB)
    accepted = []

    def contribute(first):
        for number in range(first, first + 30):
            future = folding.add(str(number), blob(number % 10))
            if future.exception(timeout=60) is None:
                accepted.append(number)

    # Half of the ids of each thread are its neighbour's too.
    threads = [threading.Thread(target=contribute, args=(15 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(accepted) == list(range(75))
    total = sum(10 ** (number % 10) for number in range(75))
    assert result(folding.report().result(timeout=60))["sum"] == [total, 75]
    engine.stop()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 9)),
            st.tuples(st.just("bad"), st.integers(0, 9)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=20,
    ),
    st.sampled_from(MODES),
)
def test_every_accepted_contribution_is_in_the_result_exactly_once(steps, options):
    engine = LOCAL.make(FACTORIES, options)
    engine.start()
    folding = engine.open(JOB)
    accepted = []
    for step, number in steps:
        if step == "restart":
            folding = engine.open(JOB, [folding.partial().result(timeout=60)])
            continue
        future = folding.add(str(number), blob(number) if step == "add" else b"rubbish")
        error = future.exception(timeout=60)
        if error is None:
            accepted.append(number)
        elif step == "add" or number in accepted:
            assert number in accepted
            assert error.code is Code.ALREADY_EXISTS
    assert result(folding.report().result(timeout=60))["sum"] == [
        sum(10**number for number in accepted),
        len(accepted),
    ]
    engine.stop()


def test_the_outcome_of_a_view_that_nobody_waits_for_is_dropped(caplog):
    """As when an owner ends while it merges what members had: an exception went to the log."""
    pending = Future()
    view = Fold.view(SimpleNamespace(partial=lambda: pending))
    view.cancel()
    pending.set_result(Partial(b"", ()))
    assert not caplog.records
