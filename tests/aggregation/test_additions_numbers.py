"""Weights and numbers that are refused, or taken, where contributions are added in one go."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.spec import DataType, TensorSpec
from fcp_core.protocol.checkpoint import CheckpointReader, write_checkpoint
from fcp_core.protocol.status import Code
from tests.aggregation.adding import (
    EVERY,
    FACTORIES,
    FLOATS,
    FORMATS,
    attempt,
    fold,
    take,
    total,
    vector,
)


@FORMATS
@EVERY
def test_a_weight_below_zero_is_refused_with_its_name(kernels, format):
    weight = TensorSpec("w", DataType.FLOAT)
    bound = bind([total("m", vector("v"), weight, "federated_weighted_mean")], FACTORIES, {}, {})
    aggregator = fold(bound, {"v": np.ones(3, "f4"), "w": np.array(2, "f4")}, format, kernels)
    reader = CheckpointReader(kernels=kernels)
    before = aggregator.dump()
    for bad in (-1, np.nan, np.inf, -np.inf) * 2:
        blob = write_checkpoint({"v": np.ones(3, "f4"), "w": np.array(bad, "f4")}, format)
        refusal = attempt(take, aggregator, reader.open, blob)
        assert refusal is not None
        assert refusal[0] is Code.INVALID_ARGUMENT
        assert "weight 'w' must be zero or above and finite" in refusal[1]
    assert aggregator.dump() == before


@FORMATS
@EVERY
def test_a_weight_of_zero_counts_the_device_and_adds_nothing(kernels, format):
    weight = TensorSpec("w", DataType.FLOAT)
    bound = bind([total("m", vector("v"), weight, "federated_weighted_mean")], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    for value, weight in [(1, 0), (3, 2)] * 3:
        tensors = {"v": np.full(3, value, "f4"), "w": np.array(weight, "f4")}
        aggregator.accumulate(reader.open(write_checkpoint(tensors, format)))
    assert aggregator.num_inputs == 6
    assert aggregator.report()["m"].tolist() == [3, 3, 3]


BIG = 3e38


@FORMATS
@EVERY
@pytest.mark.parametrize(
    ("uri", "dtype", "good", "bad", "word"),
    [
        *(
            (uri, dtype, 1, bad, "finite ones only")
            for uri in ("federated_sum", "federated_mean", "federated_max", "federated_min")
            for dtype in FLOATS
            for bad in (np.nan, np.inf, -np.inf)
        ),
        ("federated_sum", DataType.FLOAT, BIG, BIG, "out of the range of float32"),
        ("federated_mean", DataType.FLOAT, -BIG, -BIG, "out of the range of float32"),
        ("federated_sum", DataType.DOUBLE, 1e308, 1e308, "out of the range of float64"),
        ("federated_sum", DataType.INT64, 2**63 - 3, 5, "out of the range of int64"),
        ("federated_sum", DataType.INT64, -(2**63), -1, "out of the range of int64"),
        ("federated_sum", DataType.INT32, 2**31 - 3, 5, "out of the range of int32"),
    ],
)
def test_a_number_that_would_ruin_the_result_is_refused_at_its_device(
    kernels, format, uri, dtype, good, bad, word
):
    spec = vector("v", dtype, (3,))
    first = total("first", vector("u", DataType.DOUBLE))
    bound = bind([first, total("o", spec, uri=uri)], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)

    def blob(number):
        value = np.array([0, number, 0]).astype(dtype.numpy)
        return write_checkpoint({"u": np.ones(3), "v": value}, format)

    aggregator.accumulate(reader.open(blob(good)))
    before = aggregator.dump()
    for _ in range(3):
        refusal = attempt(take, aggregator, reader.open, blob(bad))
        assert refusal is not None
        assert refusal[0] is Code.INVALID_ARGUMENT
        assert "tensor 'v'" in refusal[1]
        assert word in refusal[1]
        assert aggregator.dump() == before
        # What is well goes on to be taken, and so is what makes room again.
        aggregator.accumulate(reader.open(blob(0)))
        before = aggregator.dump()
    if good not in (1, -(2**63)):
        aggregator.accumulate(reader.open(blob(-good)))
        aggregator.accumulate(reader.open(blob(bad)))
        assert aggregator.report()["o"].tolist()[1] == pytest.approx(
            bad if uri == "federated_sum" else bad / 6
        )


@FORMATS
@EVERY
def test_many_numbers_that_fit_one_by_one_never_become_infinite(kernels, format):
    bound = bind([total("o", vector("v"))], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    blob = write_checkpoint({"v": np.full(3, 2e37, "f4")}, format)
    refusals = [attempt(take, aggregator, reader.open, blob) for _ in range(30)]
    assert refusals[:17] == [None] * 17
    assert None not in refusals[17:]
    assert aggregator.report()["o"].tolist() == pytest.approx([3.4e38] * 3)


@FORMATS
@EVERY
def test_what_is_not_finite_comes_in_where_that_is_allowed(kernels, format):
    options = {"federated_sum": {"allow_non_finite": True}}
    chosen = [total("o", vector("v")), total("m", vector("v"), uri="federated_mean")]
    reader = CheckpointReader(kernels=kernels)
    lax = CheckpointAggregator(bind(chosen[:1], FACTORIES, {}, options), kernels=kernels)
    mixed = CheckpointAggregator(bind(chosen, FACTORIES, {}, options), kernels=kernels)
    for value in ([np.inf, 1, BIG], [1, np.nan, BIG], [1, 1, 1]):
        blob = write_checkpoint({"v": np.array(value, "f4")}, format)
        lax.accumulate(reader.open(blob))
        # Another aggregator of the task still refuses it.
        assert (attempt(take, mixed, reader.open, blob) is None) == (value == [1, 1, 1])
    np.testing.assert_array_equal(lax.report()["o"], [np.inf, np.nan, np.inf])
    assert mixed.num_inputs == 1


@FORMATS
@EVERY
def test_int32_weights_are_added_in_64_bits(kernels, format):
    weight = TensorSpec("w", DataType.INT32)
    bound = bind([total("m", vector("v"), weight, "federated_weighted_mean")], FACTORIES, {}, {})
    aggregator = CheckpointAggregator(bound, kernels=kernels)
    reader = CheckpointReader(kernels=kernels)
    for value in (1, 3) * 3:
        tensors = {"v": np.full(3, value, "f4"), "w": np.array(1_500_000_000, "i4")}
        aggregator.accumulate(reader.open(write_checkpoint(tensors, format)))
    loaded = CheckpointAggregator.load(bound, aggregator.dump(), kernels=kernels)
    loaded.merge(aggregator)
    assert loaded.report()["m"].tolist() == [2, 2, 2]


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
        "w": np.array(1e200),
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
