"""The local engine and the pure fold functions: real threads, real processes, real checkpoints."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import threading
import weakref
from concurrent.futures import CancelledError, ProcessPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_aggregators.plugin import fcp_register_aggregators, fcp_register_engines
from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, Partial
from fcp_core.aggregation.fold import bind_job, fold, merge_partials, report_partial, shards_of
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
(LOCAL,) = fcp_register_engines()
VALUE = TensorSpec("v", DataType.INT64, (2,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.INT64, (2,)),))
X = TensorSpec("x", DataType.FLOAT, ())
MEAN = Intrinsic("federated_mean", (X,), (TensorSpec("mean", DataType.FLOAT, ()),))
JOB = FoldJob(configuration_to_proto([SUM, MEAN]).SerializeToString())
MEDIAN = FoldJob(JOB.configuration, {"federated_mean": "median"}, max_kept_bytes=12)
MODES = [{"workers": 0}, {"workers": 2, "inline_bytes": 0, "inline_added_bytes": 0}, {"workers": 3}]


def blob(number, checkpoint_format="tf_v1"):
    """Every contribution's digit is its own, so that the sum tells which ones are in it."""
    tensors = {"v": np.array([10**number, 1]), "x": np.array(number, "f4")}
    return write_checkpoint(tensors, checkpoint_format)


def code_of(future):
    error = future.exception(timeout=60)
    assert isinstance(error, StatusError)
    return error.code


def result(data):
    return {name: tensor.tolist() for name, tensor in open_checkpoint(data).items()}


@pytest.fixture(params=MODES, ids=str)
def engine(request):
    engine = LOCAL.make(FACTORIES, request.param)
    engine.start()
    yield engine
    engine.stop()


def test_contributions_of_both_formats_are_in_the_report_once(engine):
    folding = engine.open(JOB)
    formats = ["tf_v1", "federated_compute"]
    kinds = [bytes, bytearray, memoryview]
    futures = [folding.add(str(n), kinds[n % 3](blob(n, formats[n % 2]))) for n in range(12)]
    report = folding.report()
    assert [future.result(timeout=60) for future in futures] == [None] * 12
    data = report.result(timeout=60)
    assert result(data) == {"sum": [111111111111, 12], "mean": 5.5}
    assert code_of(folding.add("late", blob(1))) is Code.ABORTED
    assert code_of(folding.report()) is Code.ABORTED
    assert code_of(folding.partial()) is Code.ABORTED
    assert code_of(folding.merge(Partial(b"", ()))) is Code.ABORTED


def test_a_report_of_nothing(engine):
    data = engine.open(JOB).report("federated_compute").result(timeout=60)
    assert data.startswith(b"FCv1")
    assert result(data)["sum"] == [0, 0]
    assert np.isnan(result(data)["mean"])


def test_what_does_not_fit_is_refused_and_leaves_no_trace(engine):
    folding = engine.open(JOB)
    wrong = write_checkpoint({"v": np.zeros(2), "x": np.array(1, "f4")}, "tf_v1")
    lacking = write_checkpoint({"v": np.zeros(2, np.int64)}, "tf_v1")
    assert code_of(folding.add("a", b"")) is Code.INVALID_ARGUMENT
    assert code_of(folding.add("a", blob(1)[:-20])) is Code.INVALID_ARGUMENT
    assert code_of(folding.add("a", wrong)) is Code.INVALID_ARGUMENT
    assert code_of(folding.add("a", lacking)) is Code.NOT_FOUND
    # The id is free again: the same device may try once more.
    folding.add("a", blob(3)).result(timeout=60)
    assert code_of(folding.add("a", blob(3))) is Code.ALREADY_EXISTS
    assert result(folding.report().result(timeout=60)) == {"sum": [1000, 1], "mean": 3}


def test_partials_go_on_elsewhere(engine):
    folding = engine.open(JOB)
    for number in (0, 1, 2):
        folding.add(str(number), blob(number)).result(timeout=60)
    first = folding.partial().result(timeout=60)
    assert sorted(first.contributions) == ["0", "1", "2"]
    folding.add("3", blob(3)).result(timeout=60)
    second = folding.partial().result(timeout=60)
    assert sorted(second.contributions) == ["0", "1", "2", "3"]

    resumed = engine.open(JOB, [first])
    assert code_of(resumed.add("1", blob(1))) is Code.ALREADY_EXISTS
    assert code_of(resumed.merge(second)) is Code.ALREADY_EXISTS
    resumed.add("4", blob(4)).result(timeout=60)
    other = engine.open(JOB)
    other.add("5", blob(5)).result(timeout=60)
    resumed.merge(other.partial().result(timeout=60)).result(timeout=60)
    assert code_of(resumed.merge(Partial(b"\xff", ("6",)))) is Code.INVALID_ARGUMENT
    resumed.add("6", blob(6)).result(timeout=60)
    assert result(resumed.report().result(timeout=60))["sum"] == [1110111, 6]

    with pytest.raises(StatusError) as caught:
        engine.open(JOB, [first, second])
    assert caught.value.code is Code.ALREADY_EXISTS
    assert code_of(engine.open(JOB).merge(Partial(first.data, ("a", "a")))) is Code.ALREADY_EXISTS


def test_abort_drops_everything(engine):
    folding = engine.open(JOB)
    folding.add("1", blob(1)).result(timeout=60)
    folding.abort()
    folding.abort()
    for future in (folding.add("2", blob(2)), folding.partial(), folding.report()):
        assert code_of(future) is Code.ABORTED


def test_stopping_the_engine_aborts_its_folds(engine):
    folding = engine.open(JOB)
    engine.stop()
    assert code_of(folding.add("2", blob(2))) is Code.ABORTED


def test_a_configuration_that_cannot_run(engine):
    for job, expected in (
        (FoldJob(b"\xff"), "not a Configuration"),
        (FoldJob(JOB.configuration, {"federated_sum": "median"}), "cannot serve it"),
    ):
        with pytest.raises(StatusError, match=expected) as caught:
            engine.open(job)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_kept_contributions_are_bounded(engine):
    folding = engine.open(MEDIAN)
    for number in (1, 2, 3):
        folding.add(str(number), blob(number)).result(timeout=60)
    assert code_of(folding.add("4", blob(4))) is Code.RESOURCE_EXHAUSTED
    assert result(folding.report().result(timeout=60))["mean"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_contribution_is_not_kept(workers):
    class Blob(bytearray):
        """A buffer that a weak reference can watch."""

    engine = LOCAL.make(FACTORIES, {"workers": workers, "inline_bytes": 0, "inline_added_bytes": 0})
    engine.start()
    folding = engine.open(JOB)
    futures, watches = [], []
    broken = bytearray(blob(1))
    broken[len(broken) // 2] ^= 1
    # The third one is of a structure that is known by then, and so would be the broken one.
    blobs = [blob(1), blob(1), blob(1), broken, b"rubbish"]
    for name, data in enumerate(blobs):
        buffer = Blob(data)
        watches.append(weakref.ref(buffer))
        futures.append(folding.add(str(name), buffer))
        futures[-1].exception(timeout=60)
        del buffer
    # Ends the threads: what they still held on the way out is gone then.
    engine.stop()
    gc.collect()
    assert [watch() for watch in watches] == [None] * len(blobs)
    assert [future.exception() for future in futures[:3]] == [None] * 3
    assert [code_of(future) for future in futures[3:]] == [Code.INVALID_ARGUMENT] * 2


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
        lambda intrinsic, options, data: Gate.load(intrinsic, data),
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


@pytest.mark.parametrize(
    ("elements", "shards"), [(1, 9), (8 << 20, 8), (32 << 20, 2), (99 << 20, 1)]
)
def test_a_large_model_has_few_shards(elements, shards):
    spec = TensorSpec("v", DataType.FLOAT, (elements,))
    job = FoldJob(
        configuration_to_proto([Intrinsic("federated_sum", (spec,), (spec,))]).SerializeToString()
    )
    assert shards_of(bind_job(FACTORIES, job), 9) == shards


def test_options_that_make_no_sense():
    for options in ({"workers": -2}, {"inline_bytes": -1}, {"inline_added_bytes": -1}):
        with pytest.raises(UsageError, match="must not be negative"):
            LOCAL.make(FACTORIES, options)


def test_folds_in_other_processes_give_the_same_result():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        batches = [[(str(n), blob(n)) for n in range(start, 9, 2)] for start in (0, 1)]
        batches[1] += [("broken", b"rubbish"), ("1", blob(1))]
        done = list(pool.map(fold, [FACTORIES] * 2, [JOB] * 2, batches))
        partials = [partial for partial, _ in done]
        merged = pool.submit(merge_partials, FACTORIES, JOB, partials).result(timeout=100)
        report = pool.submit(report_partial, FACTORIES, JOB, merged).result(timeout=100)
    assert done[0][1] == {}
    assert {name: error.code for name, error in done[1][1].items()} == {
        "broken": Code.INVALID_ARGUMENT,
        "1": Code.ALREADY_EXISTS,
    }
    assert sorted(merged.contributions) == [str(n) for n in range(9)]
    assert result(report) == {"sum": [111111111, 9], "mean": 4}


def test_partials_that_overlap_cannot_be_merged():
    one, _ = fold(FACTORIES, JOB, [("1", blob(1)), ("2", blob(2))])
    two, _ = fold(FACTORIES, JOB, [("2", blob(2))])
    with pytest.raises(StatusError, match="'2'") as caught:
        merge_partials(FACTORIES, JOB, [one, two])
    assert caught.value.code is Code.ALREADY_EXISTS
    assert merge_partials(FACTORIES, JOB, []).contributions == ()
    assert merge_partials(FACTORIES, JOB, [one]) == one


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


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("checkpoint_format", ["tf_v1", "federated_compute"])
def test_the_loops_of_an_engine_change_nothing(compiled, checkpoint_format):
    engine = LOCAL.make(FACTORIES, {"workers": 0, "compiled": compiled})
    opened = engine.open(JOB)
    if not compiled:
        assert opened._reader.kernels.name == "numpy"
    for number in range(9):
        opened.add(str(number), blob(number, checkpoint_format)).result()
    assert result(opened.report().result()) == {"sum": [111_111_111, 9], "mean": 4}


def test_checksums_are_checked_unless_the_operator_says_otherwise():
    broken = bytearray(blob(3))
    at = broken.index(np.array(3, "f4").tobytes())
    broken[at : at + 4] = np.array(5, "f4").tobytes()
    for options, accepted in (({}, False), ({"verify_checksums": False}, True)):
        opened = LOCAL.make(FACTORIES, {"workers": 0, **options}).open(JOB)
        # The first ones are parsed, the others recognised.
        for number in range(3):
            opened.add(str(number), blob(3)).result()
        future = opened.add("broken", broken)
        if accepted:
            future.result()
        else:
            assert code_of(future) is Code.INVALID_ARGUMENT
        mean = (3 * 3 + 5) / 4 if accepted else 3
        assert result(opened.report().result())["mean"] == mean


class Watched(SumAccumulator):
    """A sum that does more than adding: it notes which thread does it."""

    threads: ClassVar = []

    def accumulate(self, inputs):
        Watched.threads.append(threading.current_thread())
        super().accumulate(inputs)


WATCHED = AggregatorFactory(
    "watched", frozenset({"federated_sum"}), "watched",
    lambda intrinsic, options: Watched(intrinsic),
    lambda intrinsic, options, data: Watched.load(intrinsic, data),
)  # fmt: skip


def large(dtype, **chosen):
    """A sum of more bytes than are folded where they arrive, whatever is done with them."""
    value = TensorSpec("v", dtype, (50_000,))
    intrinsic = Intrinsic("federated_sum", (value,), (TensorSpec("sum", dtype, (50_000,)),))
    return FoldJob(configuration_to_proto([intrinsic]).SerializeToString(), chosen)


@pytest.mark.parametrize(
    ("job", "only_adds"),
    [
        (large(DataType.FLOAT), True),
        (large(DataType.DOUBLE), True),
        (large(DataType.INT64), False),  # TF V1 checkpoints pack integers
        (large(DataType.FLOAT, federated_sum="watched"), False),
    ],
)
def test_what_is_only_added(job, only_adds):
    bound = bind_job(FACTORIES | {"watched": WATCHED}, job)
    assert CheckpointAggregator(bound).only_adds is only_adds


def test_a_goal_that_cannot_be_kept_is_refused_at_once():
    engine = LOCAL.make(FACTORIES, {})
    # Each contribution is one float: 4 bytes.
    engine.open(dataclasses.replace(MEDIAN, goal_count=3))
    with pytest.raises(StatusError, match=r"keep 4 contributions of 4 bytes.*is 12") as caught:
        engine.open(dataclasses.replace(MEDIAN, goal_count=4))
    assert caught.value.code is Code.INVALID_ARGUMENT
    engine.open(dataclasses.replace(JOB, goal_count=1 << 40))


def test_what_is_only_added_is_folded_where_it_arrives():
    engine = LOCAL.make(FACTORIES | {"watched": WATCHED}, {"workers": 2})
    engine.start()
    update = write_checkpoint({"v": np.ones(50_000, "f4")}, "tf_v1")
    added = engine.open(large(DataType.FLOAT)).add("1", update)
    assert added.done()
    assert added.exception() is None
    elsewhere = engine.open(large(DataType.FLOAT, federated_sum="watched")).add("1", update)
    assert elsewhere.exception(timeout=60) is None
    (thread,) = Watched.threads
    assert thread is not threading.current_thread()
    engine.stop()


# Checkpoints that are a whole together.


def part(**tensors):
    return write_checkpoint(tensors, "federated_compute")


def test_parts_of_a_whole_count_together(engine):
    """Each intrinsic takes what has its inputs: here one sum of two devices, and two values."""
    folding = engine.open(JOB)
    folding.add("alone", blob(0)).result(60)
    sums, first, second = part(v=np.array([500, 2])), part(x=np.float32(3)), part(x=np.float32(6))
    assert folding.add_group(["a", "b"], sums, first, second).result(60) is None
    assert code_of(folding.add("a", blob(1))) is Code.ALREADY_EXISTS
    report = open_checkpoint(folding.report().result(60))
    assert report["sum"].tolist() == [501, 3]
    assert report["mean"] == 3


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        (
            (part(x=np.float32(1)), part(x=np.float32(2))),
            Code.NOT_FOUND,
            "federated_sum takes: 'v'",
        ),
        ((part(v=np.ones(3, "i8")), part(x=np.float32(1))), Code.INVALID_ARGUMENT, "expects"),
        ((part(v=np.ones(2, "i8")), part(x=np.float32(np.nan))), Code.INVALID_ARGUMENT, "x"),
        ((part(v=np.ones(2, "i8")), b"garbage"), Code.INVALID_ARGUMENT, ""),
    ],
)
def test_of_parts_that_do_not_fit_none_counts(engine, parts, code, words):
    folding = engine.open(JOB)
    future = folding.add_group(["a", "b"], *parts)
    assert code_of(future) is code
    assert words in future.exception(60).message
    folding.add("a", blob(0)).result(60)
    assert open_checkpoint(folding.report().result(60))["sum"].tolist() == [1, 1]


def test_parts_count_for_what_aggregators_keep(engine):
    folding = engine.open(dataclasses.replace(MEDIAN, goal_count=1))
    group = [part(v=np.ones(2, "i8")), *(part(x=np.float32(x)) for x in range(4))]
    assert code_of(folding.add_group(["a"], *group)) is Code.RESOURCE_EXHAUSTED
    assert folding.add_group(["a"], *group[:2]).result(60) is None


def test_what_only_adds_is_handed_over_as_it_lies(engine):
    value = dataclasses.replace(VALUE, dtype=DataType.FLOAT)
    total = dataclasses.replace(value, name="sum")
    intrinsic = Intrinsic("federated_sum", (value,), (total,))
    job = FoldJob(configuration_to_proto([intrinsic]).SerializeToString())
    whole = engine.open(job)
    for first in (0, 3):
        delta = engine.open(job)
        for number in range(first, first + 3):
            tensors = {"v": np.array([2**number, 1], "f4")}
            delta.add(str(number), write_checkpoint(tensors, "tf_v1")).result(timeout=60)
        finished = delta.finish().result(timeout=60)
        assert code_of(delta.add("late", b"")) is Code.ABORTED
        delta.abort()
        kept = b"".join(finished.pieces)
        assert finished.aggregate is not None
        assert finished.nbytes == len(kept)
        whole.absorb(finished).result(timeout=60)
    partial = whole.partial().result(timeout=60)
    assert b"".join(finished.pieces) == kept, "it is not changed by what it was added to"
    again = engine.open(job, [Partial(kept, finished.contributions)])
    assert result(again.report().result(timeout=60))["sum"] == [8 + 16 + 32, 3]
    assert sorted(partial.contributions) == [str(number) for number in range(6)]
    assert result(whole.report().result(timeout=60))["sum"] == [63, 6]
