"""The local engine and the pure fold functions: real threads, real processes, real checkpoints."""

from __future__ import annotations

import gc
import multiprocessing
import weakref
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, Partial
from fcp_core.aggregation.fold import bind_job, fold, merge_partials, report_partial, shards_of
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from tests.aggregation.engine_jobs import FACTORIES, JOB, LOCAL, MEDIAN, blob, code_of, result


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


@pytest.mark.slow
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
