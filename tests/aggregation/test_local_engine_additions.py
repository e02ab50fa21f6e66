"""What the local engine adds in one go, and parts that are a whole together."""

from __future__ import annotations

import dataclasses
import threading
from typing import ClassVar

import numpy as np
import pytest

from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob, Partial
from fcp_core.aggregation.fold import bind_job
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from tests.aggregation.engine_jobs import (
    FACTORIES,
    JOB,
    LOCAL,
    MEDIAN,
    VALUE,
    blob,
    code_of,
    result,
)


class Watched(SumAccumulator):
    """A sum that does more than adding: it notes which thread does it."""

    threads: ClassVar = []

    def accumulate(self, inputs):
        Watched.threads.append(threading.current_thread())
        super().accumulate(inputs)


WATCHED = AggregatorFactory(
    "watched", frozenset({"federated_sum"}), "watched",
    lambda intrinsic, options: Watched(intrinsic),
    Watched.load,
)  # fmt: skip


def large(dtype, **chosen):
    """A sum of more bytes than are folded where they arrive, whatever is done with them."""
    value = TensorSpec("v", dtype, (50_000,))
    intrinsic = Intrinsic("federated_sum", (value,), (TensorSpec("sum", dtype, (50_000,)),))
    return FoldJob(configuration_to_proto([intrinsic]).SerializeToString(), chosen)


@pytest.mark.parametrize(
    ("job", "only_adds", "as_in_memory"),
    [
        (large(DataType.FLOAT), True, True),
        (large(DataType.DOUBLE), True, True),
        (large(DataType.INT64), True, False),  # TF V1 checkpoints pack integers
        (large(DataType.FLOAT, federated_sum="watched"), False, True),
    ],
)
def test_what_is_only_added(job, only_adds, as_in_memory):
    aggregator = CheckpointAggregator(bind_job(FACTORIES | {"watched": WATCHED}, job))
    assert (aggregator.only_adds, aggregator.as_in_memory) == (only_adds, as_in_memory)


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


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.INT64])
def test_what_only_adds_is_handed_over_as_it_lies(engine, dtype):
    value = dataclasses.replace(VALUE, dtype=dtype)
    total = dataclasses.replace(value, name="sum")
    intrinsic = Intrinsic("federated_sum", (value,), (total,))
    job = FoldJob(configuration_to_proto([intrinsic]).SerializeToString())
    whole = engine.open(job)
    for first in (0, 3):
        delta = engine.open(job)
        for number in range(first, first + 3):
            tensors = {"v": np.array([2**number, 1], dtype.numpy)}
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
