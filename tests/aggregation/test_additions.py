"""Contributions that are added in one go give what they give one tensor at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.additions import Additions
from fcp_core.aggregation.aggregator import Accumulator, Addition, AggregatorFactory, Total
from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator, KeptBudget
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import CheckpointReader, open_checkpoint, write_checkpoint
from fcp_core.protocol.checkpoint.kernels import NumpyKernels
from fcp_core.protocol.status import Code, StatusError
from tests.aggregation.adding import (
    EVERY,
    FACTORIES,
    FLOATS,
    FORMATS,
    LOOPS,
    attempt,
    fold,
    take,
    total,
    vector,
)

#: TF V1 checkpoints have no place for uint64.
NUMBERS = [*FLOATS, DataType.INT32, DataType.INT64]


@st.composite
def intrinsics(draw):
    """Draw intrinsics that only add, others, and those that share an input."""
    found = []
    weights = [
        TensorSpec(
            f"weight{index}", draw(st.sampled_from(NUMBERS)), draw(st.sampled_from([(), (1,)]))
        )
        for index in range(2)
    ]
    for index in range(draw(st.integers(1, 6))):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        uri = draw(
            st.sampled_from(
                ["federated_sum", "federated_mean", "federated_weighted_mean", "federated_max"]
            )
        )
        dtype = draw(st.sampled_from(FLOATS if "mean" in uri else NUMBERS))
        value = TensorSpec(f"v{index}", dtype, shape)
        if uri == "federated_sum" and draw(st.integers(0, 3)) == 0:
            value = weights[0]
        weight = draw(st.sampled_from(weights)) if "weighted" in uri else None
        found.append(total(f"out{index}", value, weight, uri))
    return found


def values(rng, spec):
    """Return a tensor of any numbers; weights are nearly always above zero."""
    if spec.name.startswith("weight"):
        low = 0 if rng.random() < 0.1 else 1
        return rng.integers(low, 300, spec.shape).astype(spec.dtype.numpy)
    if spec.dtype in FLOATS:
        scale = 10.0 ** rng.integers(-3, 30)
        return (rng.normal(size=spec.shape) * scale).astype(spec.dtype.numpy)
    info = np.iinfo(spec.dtype.numpy)
    few = rng.random() < 0.5
    bounds = (0, 100) if few else (info.min, info.max)
    return rng.integers(*bounds, spec.shape, spec.dtype.numpy, endpoint=True)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_state_and_the_refusals_are_those_of_the_general_way(data):
    chosen = data.draw(intrinsics())
    format = data.draw(st.sampled_from(["tf_v1", "federated_compute"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kernels = data.draw(st.sampled_from(LOOPS))
    bound = bind(chosen, FACTORIES, {}, {})
    specs = {spec.name: spec for intrinsic in chosen for spec in intrinsic.inputs}
    general, plain = (CheckpointAggregator(bound) for _ in range(2))
    fast, other, alike = (CheckpointAggregator(bound, kernels=kernels) for _ in range(3))
    reader = CheckpointReader(kernels=kernels)
    for _ in range(data.draw(st.integers(1, 12))):
        tensors = {name: values(rng, spec) for name, spec in specs.items()}
        if data.draw(st.integers(0, 7)) == 0:
            name = data.draw(st.sampled_from(sorted(tensors)))
            change = data.draw(st.sampled_from(["drop", "dtype", "shape"]))
            if change == "drop":
                del tensors[name]
            elif change == "dtype":
                tensors[name] = tensors[name].astype("f4" if tensors[name].dtype != "f4" else "f8")
            else:
                tensors[name] = np.repeat(tensors[name].reshape(-1), 2)
        blob = bytearray(write_checkpoint(tensors, format))
        for _ in range(data.draw(st.sampled_from([0, 0, 0, 1, 2]))):
            blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
        assert attempt(take, fast, reader.open, blob) == attempt(
            take, general, open_checkpoint, blob
        )
        attempt(take, alike, reader.open, blob)
        attempt(take, plain, open_checkpoint, blob)
        events = ["", "", "", "dump", "load", "merge", "merge alike", "merge other"]
        event = data.draw(st.sampled_from(events))
        if event == "dump":
            assert fast.dump() == general.dump()
            assert fast.num_inputs == general.num_inputs
        elif event == "load":
            fast = CheckpointAggregator.load(bound, fast.dump(), kernels=kernels)
        elif event == "merge":
            # The sum of two sums may differ from one sum, so both ways do the same.
            assert attempt(
                fast.merge, CheckpointAggregator.load(bound, fast.dump(), kernels=kernels)
            ) == attempt(general.merge, CheckpointAggregator.load(bound, general.dump()))
        elif event == "merge alike":
            assert attempt(fast.merge, alike) == attempt(general.merge, plain)
            assert alike.dump() == plain.dump()
        elif event == "merge other":
            attempt(other.merge, fast)
            assert fast.dump() == general.dump()
    assert fast.num_inputs == general.num_inputs
    assert fast.dump() == general.dump()
    mine, theirs = fast.report(), general.report()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.shape == theirs[name].shape
        assert tensor.tobytes() == theirs[name].tobytes()


class Watched(SumAccumulator):
    """Counts the calls that folding by addition is to spare."""

    calls = 0

    def additions(self):
        return (Addition(self._total, 0),)

    def accumulate(self, inputs):
        Watched.calls += 1
        super().accumulate(inputs)


WATCHED = AggregatorFactory(
    "watched",
    frozenset({"watched"}),
    "a sum",
    lambda intrinsic, options: Watched(intrinsic),
    Watched.load,
)


@FORMATS
@EVERY
def test_a_strangers_accumulator_is_added_too(kernels, format, monkeypatch):
    monkeypatch.setattr(Watched, "calls", 0)
    many = [total(f"o{i}", vector(f"v{i}", shape=(i % 3, 2)), uri="watched") for i in range(9)]
    bound = bind(many, {"watched": WATCHED}, {}, {})
    tensors = {f"v{i}": np.full((i % 3, 2), i, "f4") for i in range(9)}
    aggregator = fold(bound, tensors, format, kernels)
    # The first is parsed; from the second one, whose size came again, the layout is known.
    assert Watched.calls == 9
    assert aggregator.num_inputs == 5
    for i, tensor in enumerate(aggregator.report().values()):
        assert tensor.tolist() == np.full((i % 3, 2), 5 * i).tolist()


@FORMATS
@EVERY
def test_the_others_see_each_contribution_as_ever(kernels, format):
    chosen = [
        total("sum", vector("v")),
        total("max", vector("v"), uri="federated_max"),
        total("mean", vector("v"), TensorSpec("w", DataType.INT64), "federated_weighted_mean"),
        Intrinsic(
            "fedsql_group_by",
            (vector("k", DataType.INT64, (-1,)),),
            (vector("k", DataType.INT64, (-1,)),),
            nested=(
                Intrinsic(
                    "GoogleSQL:sum",
                    (vector("c", DataType.INT64, (-1,)),),
                    (vector("groups", DataType.INT64, (-1,)),),
                ),
            ),
        ),
    ]
    tensors = {
        "v": np.array([1, 2, 3], "f4"),
        "w": np.array(3),
        "k": np.array([1, 2]),
        "c": np.array([5, 6]),
    }
    result = fold(bind(chosen, FACTORIES, {}, {}), tensors, format, kernels).report()
    assert {name: tensor.tolist() for name, tensor in result.items()} == {
        "sum": [5, 10, 15],
        "max": [1, 2, 3],
        "mean": [1, 2, 3],
        "k": [1, 2],
        "groups": [25, 30],
    }


class Watching(NumpyKernels):
    """Finds the peaks with the checksums, and counts how often the numbers are looked at again."""

    looks = 0

    def verifier(self, blocks, floats):
        verify = super().verifier(blocks, floats)

        def find(data):
            numbers = (np.frombuffer(data[a:b], f"f{size}") for a, b, size in floats.tolist())
            return verify(data)[0], np.array([np.abs(item).max() for item in numbers])

        return find

    def peak(self, dtype, rows):
        found = super().peak(dtype, rows)

        def look(data, weights):
            self.looks += 1
            return found(data, weights)

        return look


def test_what_was_measured_with_the_checksums_is_not_measured_again():
    weight = TensorSpec("w", DataType.FLOAT)
    mean = total("mean", vector("u"), weight, "federated_weighted_mean")
    bound = bind([total("sum", vector("v")), mean], FACTORIES, {}, {})
    kernels = Watching()
    reader = CheckpointReader(kernels=kernels)
    aggregator = CheckpointAggregator(bound, kernels=kernels)

    def give(number, weight):
        tensors = {"v": np.ones(3, "f4"), "u": np.full(3, number, "f4")}
        blob = write_checkpoint(tensors | {"w": np.array(weight, "f4")}, "tf_v1")
        return attempt(take, aggregator, reader.open, blob)

    for _ in range(5):
        assert give(2, 3) is None
    # The first is parsed, and the layout is learned from the second one.
    assert kernels.looks == 1
    # The largest number is in range, and times its weight it is not.
    for _ in range(2):
        refusal = give(1e30, 1e30)
        assert refusal is not None
        assert "times the weight" in refusal[1]
    assert kernels.looks == 1
    assert aggregator.num_inputs == 5
    assert aggregator.report()["mean"].tolist() == [2, 2, 2]


@EVERY
def test_what_is_kept_is_counted_before_anything_is_added(kernels):
    chosen = [total("sum", vector("v")), total("median", vector("v"), uri="federated_mean")]
    bound = bind(chosen, FACTORIES, {"federated_mean": "median"}, {})
    aggregator = CheckpointAggregator(bound, KeptBudget(3 * 12), kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    blob = write_checkpoint({"v": np.ones(3, "f4")}, "federated_compute")
    for _ in range(3):
        aggregator.accumulate(reader.open(blob))
    before = aggregator.dump()
    refusal = attempt(take, aggregator, reader.open, blob)
    assert refusal is not None
    assert refusal[0] is Code.RESOURCE_EXHAUSTED
    assert aggregator.dump() == before
    assert aggregator.num_inputs == 3


@FORMATS
@EVERY
def test_what_was_added_in_one_go_is_merged_in_one_go(kernels, format, monkeypatch):
    weight = TensorSpec("w", DataType.DOUBLE)
    chosen = [total("a", vector("u")), total("m", vector("v"), weight, "federated_weighted_mean")]
    chosen.append(total("x", vector("u"), uri="federated_max"))
    bound = bind(chosen, FACTORIES, {}, {})
    one, other, general = (CheckpointAggregator(bound, kernels=kernels) for _ in range(3))
    reader = CheckpointReader(kernels=kernels)
    for number in range(8):
        tensors = {"u": np.full(3, number), "v": np.full(3, number), "w": np.array(2.0**number)}
        tensors = {n: t.astype("f8" if n == "w" else "f4") for n, t in tensors.items()}
        blob = write_checkpoint(tensors, format)
        (one, other)[number % 2].accumulate(reader.open(blob))
        general.accumulate(open_checkpoint(blob))
    merged = []
    real = SumAccumulator.merge
    monkeypatch.setattr(SumAccumulator, "merge", lambda *pair: merged.append(pair) or real(*pair))
    before = other.dump()
    one.merge(other)
    assert not merged, "no accumulator was asked"
    assert other.dump() == before
    assert one.num_inputs == 8
    assert one.dump() == general.dump()
    # So is what is merged into one that has added nothing itself.
    collected = CheckpointAggregator(bound, kernels=kernels)
    for part in (other, one):
        collected.merge(part)
    assert not merged
    assert collected.num_inputs == 12
    # What may be beyond the dtype is looked at by the accumulators, and refused.
    huge = CheckpointAggregator(bound, kernels=kernels)
    for value in (1, 2, 3, 2e38):
        tensors = {"u": np.full(3, value, "f4"), "v": np.ones(3, "f4"), "w": np.array(1.0)}
        huge.accumulate(reader.open(write_checkpoint(tensors, format)))
    one.merge(huge)
    before = one.dump()
    assert attempt(one.merge, huge)[0] is Code.OUT_OF_RANGE
    assert one.dump() == before


def test_partials_that_are_too_large_together_change_nothing():
    bound = bind(
        [total("a", vector("u")), total("o", vector("v", DataType.INT64))], FACTORIES, {}, {}
    )
    one, other = CheckpointAggregator(bound), CheckpointAggregator(bound)
    for aggregator in (one, other):
        aggregator.accumulate({"u": np.ones(3, "f4"), "v": np.full(3, 2**62)})
    before = one.dump()
    refusal = attempt(one.merge, other)
    assert refusal is not None
    assert refusal[0] is Code.OUT_OF_RANGE
    assert "tensor 'v'" in refusal[1]
    assert one.dump() == before


@EVERY
def test_nothing_is_added_after_the_end(kernels):
    bound = bind([total("o", vector("v"))], FACTORIES, {}, {})
    reader = CheckpointReader(kernels=kernels)
    blob = write_checkpoint({"v": np.ones(3, "f4")}, "tf_v1")
    for end in (CheckpointAggregator.report, CheckpointAggregator.abort):
        aggregator = CheckpointAggregator(bound, kernels=kernels)
        for _ in range(3):
            aggregator.accumulate(reader.open(blob))
        end(aggregator)
        refusal = attempt(take, aggregator, reader.open, blob)
        assert refusal is not None
        assert refusal[0] is Code.ABORTED


@EVERY
def test_many_layouts_do_not_pile_up(kernels):
    bound = bind([total("o", vector("v"))], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    for size in range(40):
        tensors = {"v": np.ones(3, "f4"), "more": np.zeros(size, "f4")}
        for _ in range(3):
            aggregator.accumulate(reader.open(write_checkpoint(tensors, "tf_v1")))
    assert len(aggregator._plans) <= 16
    assert aggregator.report()["o"].tolist() == [120] * 3


@pytest.mark.parametrize(
    ("array", "spec", "weight"),
    [
        (np.zeros(3, "f8"), vector("v"), None),
        (np.zeros(2, "f4"), vector("v"), None),
        (np.zeros((3, 2), "f4")[:, 0], vector("v"), None),
        (np.zeros(3, "f4"), vector("v", shape=(-1,)), None),
        (np.empty(3, object), vector("v", DataType.STRING), None),
        (np.zeros(3, "i4"), vector("v", DataType.INT32), TensorSpec("w", DataType.FLOAT)),
        (np.zeros(3, "f4"), vector("v"), vector("w", shape=(2,))),
    ],
    ids=range(7),
)
def test_additions_that_cannot_be_made_are_an_error_of_the_aggregator(array, spec, weight):
    class Wrong(SumAccumulator):
        def additions(self):
            return (Addition(Total(array), 0, None if weight is None else 1),)

    accumulator = Wrong(total("o", vector("v")))
    with pytest.raises(StatusError, match="Wrong names an addition") as caught:
        Additions([(accumulator, [spec, weight])], NumpyKernels())
    assert caught.value.code is Code.INTERNAL


def test_a_total_that_two_additions_share_is_an_error_of_the_aggregator():
    class Wrong(SumAccumulator):
        def additions(self):
            return (Addition(self._total, 0), Addition(self._total, 0))

    accumulator = Wrong(total("o", vector("v")))
    with pytest.raises(StatusError, match="share a total") as caught:
        Additions([(accumulator, [vector("v")])], NumpyKernels())
    assert caught.value.code is Code.INTERNAL


def test_whoever_names_additions_must_count_them():
    with pytest.raises(NotImplementedError, match="Watched names additions"):
        Accumulator.added(Watched(total("o", vector("v"))), 1)
