"""A large contribution to an empty fold becomes the totals where it lies, with the same numbers."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation import additions, adoption
from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.blocks import BlockFile, FileBlock, block_of
from fcp_core.protocol.checkpoint import (
    CheckpointReader,
    kernels,
    open_checkpoint,
    wire,
    write_checkpoint,
)

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
FORMATS = ["tf_v1", "federated_compute"]
WEIGHT = TensorSpec("weight", DataType.FLOAT)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(adoption, "ADOPTED", 64)
    monkeypatch.setattr(kernels, "_LARGE", 0)
    # So that a contribution is moved in several steps.
    monkeypatch.setattr(adoption, "_CHUNK", 7)


@pytest.fixture
def adopted(monkeypatch):
    """What was adopted, in bytes."""
    sizes = []
    adopt = adoption.adopt

    def count(*arguments):
        total, starts = adopt(*arguments)
        sizes.append(total.nbytes)
        return total, starts

    monkeypatch.setattr("fcp_core.aggregation.checkpoint_aggregator.adopt", count)
    return sizes


def intrinsics(sizes, uri="federated_sum"):
    found = []
    for index, size in enumerate(sizes):
        value = TensorSpec(f"v{index}", DataType.FLOAT, (size,))
        inputs = (value, WEIGHT) if "weighted" in uri else (value,)
        found.append(Intrinsic(uri, inputs, (TensorSpec(f"o{index}", DataType.FLOAT, (size,)),)))
    return found


def contribution(rng, sizes, format, weight=2.5, order=None):
    values = {f"v{i}": rng.standard_normal(size).astype("f4") for i, size in enumerate(sizes)}
    for value in values.values():
        value[::3] = -0.0
    values["weight"] = np.float32(weight)
    return write_checkpoint({name: values[name] for name in order or values}, format)


def memory(blob):
    """Return what a body is received into: writable, at the beginning of a page."""
    block = mmap.mmap(-1, len(blob))
    block[:] = blob
    return memoryview(block)


@pytest.mark.parametrize("dtype", [DataType.INT64, DataType.INT32])
def test_integers_that_are_decoded_in_a_file_are_the_totals(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "_IN_FILE", 1)
    monkeypatch.setattr(wire, "_BEHIND", 1_000)
    size, kind = 3_000, dtype.numpy
    intrinsic = Intrinsic(
        "federated_sum", (TensorSpec("v", dtype, (size,)),), (TensorSpec("o", dtype, (size,)),)
    )
    bound = bind([intrinsic], FACTORIES, {}, {})
    reader, whole = CheckpointReader(), CheckpointAggregator(bound)
    values = [np.arange(size, dtype=kind) * sign for sign in (1, -1, 5)]
    for value in values:
        blob = write_checkpoint({"v": value}, "tf_v1")
        reader.open(blob)  # its size is worth a layout the second time
        file = BlockFile(len(blob), tmp_path)
        file.write(memoryview(blob))
        own = file.block()
        delta = CheckpointAggregator(bound)
        delta.accumulate(reader.open(own), own)
        (total,) = delta._additions._arrays.values()
        assert isinstance(block_of(total.data), FileBlock)
        whole.merge(delta)
        delta.accumulate(reader.open(blob))
        assert (delta.report()["o"] == 2 * value).all()
    assert (whole.report()["o"] == sum(values)).all()


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=6),
    st.sampled_from(["federated_sum", "federated_weighted_mean", "federated_mean"]),
    st.sampled_from(FORMATS),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_the_state_is_that_of_adding(sizes, uri, format, count, random):
    rng = np.random.default_rng(random.getrandbits(32))
    bound = bind(intrinsics(sizes, uri), FACTORIES, {}, {})
    reader = CheckpointReader()
    one, other, merged = (CheckpointAggregator(bound) for _ in range(3))
    names = [*(f"v{index}" for index in range(len(sizes))), "weight"]
    for _ in range(count):
        random.shuffle(names)
        blob = contribution(rng, sizes, format, order=names)
        one.accumulate(open_checkpoint(blob))
        own, apart = memory(blob), memory(blob)
        other.accumulate(reader.open(own), own)
        delta = CheckpointAggregator(bound)
        delta.accumulate(reader.open(apart), apart)
        merged.merge(delta)
    assert one.dump() == other.dump() == merged.dump()
    assert other.num_inputs == count


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("sizes", "uri"), [([700, 300], "federated_sum"), ([1000], "federated_weighted_mean")]
)
def test_totals_lie_in_the_order_of_the_contribution(sizes, uri, format, adopted):
    names = ["v1", "v0"][-len(sizes) :] + ["weight"]
    rng = np.random.default_rng(5)
    bound = bind(intrinsics(sizes, uri), FACTORIES, {}, {})
    reader, whole, plain = CheckpointReader(), *(CheckpointAggregator(bound) for _ in range(2))
    for _ in range(3):
        blob = contribution(rng, sizes, format, order=names)
        plain.accumulate(open_checkpoint(blob))
        own, delta = memory(blob), CheckpointAggregator(bound)
        delta.accumulate(reader.open(own), own)
        whole.merge(delta)
    assert adopted == [4000 + 4 * ("weighted" in uri)] * 3
    assert whole.dump() == plain.dump()


def test_totals_beside_which_others_are_added_are_not_adopted(adopted):
    # Both are sums of int64, but one is of int32, which is not added where it lies.
    large = TensorSpec("large", DataType.INT64, (1000,))
    weight = TensorSpec("weight", DataType.INT32)
    bound = bind(
        [
            Intrinsic("federated_sum", (large,), (TensorSpec("l", DataType.INT64, (1000,)),)),
            Intrinsic(
                "federated_weighted_mean",
                (TensorSpec("v0", DataType.FLOAT), weight),
                (TensorSpec("o", DataType.FLOAT),),
            ),
        ],
        FACTORIES,
        {},
        {},
    )
    values = {"large": np.arange(1000), "v0": np.float32(5), "weight": np.int32(3)}
    own = memory(write_checkpoint(values, "federated_compute"))
    aggregator = CheckpointAggregator(bound)
    aggregator.accumulate(CheckpointReader().open(own), own)
    result = aggregator.report()
    np.testing.assert_array_equal(result["l"], values["large"])
    assert result["o"] == 5
    assert not adopted


@pytest.mark.parametrize("format", FORMATS)
def test_only_the_first_contribution_is_adopted(format, adopted):
    sizes = [1000]
    rng = np.random.default_rng(1)
    aggregator = CheckpointAggregator(bind(intrinsics(sizes), FACTORIES, {}, {}))
    reader, held = CheckpointReader(), []
    for _ in range(3):
        own = memory(contribution(rng, sizes, format))
        aggregator.accumulate(reader.open(own), own)
        held.append(own)
    assert adopted == [4000]
    state = np.frombuffer(held[0], np.uint8)
    total = next(iter(aggregator._additions._arrays.values()))
    assert np.shares_memory(total, state)


def test_what_was_merged_or_loaded_before_is_kept(adopted):
    sizes = [100]
    rng = np.random.default_rng(2)
    bound = bind(intrinsics(sizes), FACTORIES, {}, {})
    blobs = [contribution(rng, sizes, "federated_compute") for _ in range(2)]
    first, merged, plain = (CheckpointAggregator(bound) for _ in range(3))
    first.accumulate(open_checkpoint(blobs[0]))
    merged.merge(first)
    loaded = CheckpointAggregator.load(bound, first.dump())
    for blob in blobs:
        plain.accumulate(open_checkpoint(blob))
    for aggregator in (merged, loaded):
        own = memory(blobs[1])
        aggregator.accumulate(CheckpointReader().open(own), own)
        assert aggregator.dump() == plain.dump()
    assert not adopted


def test_what_others_look_at_is_not_adopted(adopted):
    kept = TensorSpec("v0", DataType.FLOAT, (100,))
    largest = Intrinsic("federated_max", (kept,), (TensorSpec("m", DataType.FLOAT, (100,)),))
    bound = bind([*intrinsics([100]), largest], FACTORIES, {}, {})
    blob = contribution(np.random.default_rng(3), [100], "federated_compute")
    plain, other = CheckpointAggregator(bound), CheckpointAggregator(bound)
    plain.accumulate(open_checkpoint(blob))
    own = memory(blob)
    other.accumulate(CheckpointReader().open(own), own)
    assert other.dump() == plain.dump()
    assert not adopted


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_refused_contribution_is_not_adopted(wrong, adopted):
    sizes = [100]
    bound = bind(intrinsics(sizes), FACTORIES, {}, {})
    values = np.ones(100, np.float32)
    values[50] = wrong
    aggregator = CheckpointAggregator(bound)
    own = memory(write_checkpoint({"v0": values}, "federated_compute"))
    with pytest.raises(Exception, match="v0"):
        aggregator.accumulate(CheckpointReader().open(own), own)
    assert aggregator.dump() == CheckpointAggregator(bound).dump()
    assert not adopted


@pytest.mark.parametrize(("body", "count"), [(bytes, 0), (bytearray, 0), (memory, 1)])
def test_a_fold_adopts_what_is_handed_over(body, count, adopted):
    configuration = configuration_to_proto(intrinsics([100])).SerializeToString()
    blob = contribution(np.random.default_rng(4), [100], "federated_compute")
    given_blob = body(blob)
    engine = LocalEngine(FACTORIES, workers=1)
    engine.start()
    fold = engine.open(FoldJob(configuration))
    fold.add("a", given_blob).result(30)
    fold.add("b", blob).result(30)
    found = open_checkpoint(fold.report().result(30))["o0"]
    engine.stop()
    assert np.array_equal(found, 2 * open_checkpoint(blob)["v0"])
    assert len(adopted) == count
    if not count:
        assert bytes(given_blob) == blob


def test_sums_in_files_are_added_without_being_in_memory(tmp_path, monkeypatch):
    rested = []
    monkeypatch.setattr(additions, "_MERGED", 1 << 10)
    monkeypatch.setattr(additions, "rest", lambda view: rested.append((block_of(view), view)))
    size, values = 10_000, np.arange(10_000, dtype="f4")
    job = FoldJob(configuration_to_proto(intrinsics([size])).SerializeToString())
    engine = LocalEngine(FACTORIES)
    engine.start()
    whole = engine.open(job)
    for number in range(3):
        data = write_checkpoint({"v0": values + number}, "federated_compute")
        file = BlockFile(len(data), tmp_path)
        file.write(memoryview(data))
        delta = engine.open(job)
        delta.add(str(number), file.block()).result()
        whole.absorb(delta.finish().result()).result()
        delta.abort()
    assert len(rested) == 2 * 10, "the first is no addition"
    assert all(isinstance(block, FileBlock) for block, _ in rested)
    assert max(view.nbytes for _, view in rested) <= 4 << 10
    rested.clear()
    result = open_checkpoint(whole.report("federated_compute").result())
    np.testing.assert_array_equal(result["o0"], 3 * values + 3)
    engine.stop()
