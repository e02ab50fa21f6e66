"""Contributions that are added in one go give what they give one tensor at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_aggregators.vector import SumAccumulator
from fcp_core.aggregation.additions import Additions
from fcp_core.aggregation.aggregator import Accumulator, Addition, AggregatorFactory, Total
from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator, KeptBudget
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.checkpoint import CheckpointReader, open_checkpoint, write_checkpoint
from fcp_core.protocol.kernels import NumpyKernels, compiled_kernels
from fcp_core.protocol.status import Code, StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
LOOPS = [NumpyKernels(), *filter(None, [compiled_kernels()])]
EVERY = pytest.mark.parametrize("kernels", LOOPS, ids=lambda kernels: kernels.name)
FORMATS = pytest.mark.parametrize("format", ["tf_v1", "federated_compute"])

FLOATS = [DataType.FLOAT, DataType.DOUBLE]
#: TF V1 checkpoints have no place for uint64.
NUMBERS = [*FLOATS, DataType.INT32, DataType.INT64]


def total(name, value, weight=None, uri="federated_sum"):
    inputs = (value,) if weight is None else (value, weight)
    return Intrinsic(uri, inputs, (replace(value, name=name),))


def vector(name, dtype=DataType.FLOAT, shape=(3,)):
    return TensorSpec(name, dtype, shape)


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


def attempt(function, *args):
    """Return the refusal of a contribution, or None."""
    try:
        function(*args)
    except StatusError as error:
        return error.code, error.message
    return None


def take(aggregator, open_, blob):
    aggregator.accumulate(open_(blob))


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_state_and_the_refusals_are_those_of_the_general_way(data):
    chosen = data.draw(intrinsics())
    format = data.draw(st.sampled_from(["tf_v1", "federated_compute"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kernels = data.draw(st.sampled_from(LOOPS))
    bound = bind(chosen, FACTORIES, {}, {})
    specs = {spec.name: spec for intrinsic in chosen for spec in intrinsic.inputs}
    general = CheckpointAggregator(bound)
    fast, other = (CheckpointAggregator(bound, kernels=kernels) for _ in range(2))
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
        event = data.draw(st.sampled_from(["", "", "", "dump", "load", "merge", "merge other"]))
        if event == "dump":
            assert fast.dump() == general.dump()
            assert fast.num_inputs == general.num_inputs
        elif event == "load":
            fast = CheckpointAggregator.load(bound, fast.dump(), kernels=kernels)
        elif event == "merge":
            # The sum of two sums may differ from one sum, so both ways do the same.
            general.merge(CheckpointAggregator.load(bound, general.dump()))
            fast.merge(CheckpointAggregator.load(bound, fast.dump(), kernels=kernels))
        elif event == "merge other":
            other.merge(fast)
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
    lambda intrinsic, options, data: Watched.load(intrinsic, data),
)


def fold(bound, tensors, format, kernels, times=5):
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    for _ in range(times):
        aggregator.accumulate(reader.open(write_checkpoint(tensors, format)))
    return aggregator


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
def test_a_weight_of_zero_is_refused_with_its_name(kernels, format):
    weight = TensorSpec("w", DataType.FLOAT)
    bound = bind([total("m", vector("v"), weight, "federated_weighted_mean")], FACTORIES, {}, {})
    aggregator = fold(bound, {"v": np.ones(3, "f4"), "w": np.array(2, "f4")}, format, kernels)
    reader = CheckpointReader(kernels=kernels)
    before = aggregator.dump()
    for bad in (0, -1, np.nan) * 2:
        blob = write_checkpoint({"v": np.ones(3, "f4"), "w": np.array(bad, "f4")}, format)
        refusal = attempt(take, aggregator, reader.open, blob)
        assert refusal is not None
        assert refusal[0] is Code.INVALID_ARGUMENT
        assert "weight 'w' must be above zero" in refusal[1]
    assert aggregator.dump() == before


@FORMATS
@EVERY
def test_a_weight_is_converted_to_the_dtype_of_its_own_values_only(kernels, format):
    weight = TensorSpec("w", DataType.DOUBLE)
    chosen = [
        total("wide", vector("d", DataType.DOUBLE), weight, "federated_weighted_mean"),
        total("narrow", vector("f"), uri="federated_mean"),
        total("count", vector("i", DataType.INT32)),
    ]
    tensors = {
        "d": np.array([1, 2, 3.0]),
        "w": np.array(1e300),
        "f": np.array([1, 2, 3], "f4"),
        "i": np.array([1, 2, 3], "i4"),
    }
    result = fold(bind(chosen, FACTORIES, {}, {}), tensors, format, kernels).report()
    assert {name: tensor.tolist() for name, tensor in result.items()} == {
        "wide": [1, 2, 3],
        "narrow": [1, 2, 3],
        "count": [5, 10, 15],
    }


@FORMATS
@EVERY
def test_a_weight_that_signals_is_refused_like_any_nan(kernels, format):
    weight = TensorSpec("w", DataType.FLOAT)
    bound = bind([total("m", vector("v"), weight, "federated_weighted_mean")], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    signalling = np.frombuffer(b"\x01\0\x80\x7f", "f4").reshape(())
    for _ in range(4):
        blob = write_checkpoint({"v": np.ones(3, "f4"), "w": signalling}, format)
        refusal = attempt(take, aggregator, reader.open, blob)
        assert refusal is not None
        assert refusal[0] is Code.INVALID_ARGUMENT
    assert aggregator.num_inputs == 0


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
