"""The whole-update aggregators against plain definitions, and against hostile devices."""

import itertools

import numpy as np
import pytest

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_robust import plugin
from fcp_robust.distances import minimum

SIZE = 40
DEFAULTS = {"fraction": 0.3, "norm": 10.0, "byzantine": 3, "selected": 0}
DEFAULTS |= {"iterations": 200, "tolerance": 1e-10, "smoothing": 1e-9}


def intrinsics(factory, dtype=DataType.DOUBLE):
    """A model of two tensors; an aggregator that is not joint gets it as one tensor."""
    sizes = (SIZE // 4, SIZE - SIZE // 4) if factory.joint else (SIZE,)
    means = tuple(
        Intrinsic(
            "federated_mean",
            (TensorSpec(f"v{i}", dtype, (size,)),),
            (TensorSpec(f"r{i}", dtype, (size,)),),
        )
        for i, size in enumerate(sizes)
    )
    return Intrinsic(JOINT_URI, nested=means) if factory.joint else means[0]


def aggregate(factory, rows, **options):
    intrinsic = intrinsics(factory)
    accumulator = factory.make(intrinsic, DEFAULTS | options)
    for row in rows:
        inputs = np.split(np.asarray(row, "f8"), [SIZE // 4]) if factory.joint else [row]
        accumulator.validate(inputs)
        accumulator.accumulate(inputs)
    return np.concatenate(accumulator.report())


@pytest.fixture
def honest():
    return np.random.default_rng(7).normal(1.0, 0.1, (13, SIZE))


def krum_scores(rows, f):
    """Blanchard and others, 2017, as it is written there."""
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(np.sum((row - other) ** 2) for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: len(rows) - f - 2]))
    return np.array(scores)


def test_krum_is_the_update_with_the_lowest_score(honest):
    best = honest[np.argmin(krum_scores(honest, 3))]
    np.testing.assert_array_equal(aggregate(plugin.KRUM, honest), best)


@pytest.mark.parametrize("selected", [0, 1, 5])
def test_multi_krum_is_the_mean_of_the_lowest_scores(honest, selected):
    order = np.argsort(krum_scores(honest, 3))[: selected or len(honest) - 3]
    result = aggregate(plugin.MULTI_KRUM, honest, selected=selected)
    np.testing.assert_allclose(result, honest[order].mean(axis=0), rtol=1e-12)


def test_krum_says_how_many_updates_it_needs(honest):
    for count, f in itertools.product((2, 4, 5), (1, 2)):
        rows = honest[:count]
        if count >= minimum(f):
            assert aggregate(plugin.KRUM, rows, byzantine=f) in rows
        else:
            with pytest.raises(StatusError, match=f"needs {minimum(f)} contributions") as caught:
                aggregate(plugin.KRUM, rows, byzantine=f)
            assert caught.value.code is Code.FAILED_PRECONDITION


def test_the_geometric_median_has_the_smallest_sum_of_distances(honest):
    def total(point):
        return np.linalg.norm(honest - point, axis=1).sum()

    found = aggregate(plugin.GEOMETRIC_MEDIAN, honest)
    noise = np.random.default_rng(1).normal(0, 1e-3, (50, SIZE))
    assert all(total(found) < total(found + shift) for shift in noise)
    assert total(found) < min(total(honest.mean(axis=0)), *map(total, honest))


def test_the_geometric_median_of_a_majority_of_equal_updates_is_that_update():
    rows = np.vstack([np.ones((6, SIZE)), np.full((5, SIZE), 1000.0)])
    result = aggregate(plugin.GEOMETRIC_MEDIAN, rows)
    np.testing.assert_allclose(result, np.ones(SIZE), atol=1e-5)


def test_the_trimmed_mean_leaves_out_what_its_fraction_says(honest):
    trimmed = np.sort(honest, axis=0)[3:-3].mean(axis=0)
    np.testing.assert_allclose(aggregate(plugin.TRIMMED_MEAN, honest), trimmed, rtol=1e-12)
    plain = aggregate(plugin.TRIMMED_MEAN, honest, fraction=0)
    np.testing.assert_allclose(plain, honest.mean(axis=0), rtol=1e-12)


def test_the_norm_is_that_of_the_whole_update():
    row = np.full(SIZE, 3.0)
    clipped = aggregate(plugin.NORM_CLIPPING, [row], norm=1.0)
    np.testing.assert_allclose(np.linalg.norm(clipped), 1.0)
    np.testing.assert_array_equal(aggregate(plugin.NORM_CLIPPING, [row], norm=1e3), row)


def test_weights_that_are_too_much_together_are_refused():
    value, weight = TensorSpec("v", DataType.DOUBLE, (1,)), TensorSpec("w", DataType.DOUBLE)
    outputs = (TensorSpec("r", DataType.DOUBLE, (1,)),)
    mean = Intrinsic("federated_weighted_mean", (value, weight), outputs)
    factory = plugin.NORM_CLIPPING
    intrinsic = Intrinsic(JOINT_URI, nested=(mean,)) if factory.joint else mean
    inputs = [np.ones(1), np.array(9e307)]
    first, second = (factory.make(intrinsic, DEFAULTS | {"norm": 1.0}) for _ in range(2))
    for each in (first, second):
        each.validate(inputs)
        each.accumulate(inputs)
    with pytest.raises(StatusError, match="too much to be added") as caught:
        first.merge(second)
    assert caught.value.code is Code.OUT_OF_RANGE
    assert first.report() == [1.0]


ATTACKS = {
    "far": lambda rows: np.full((3, SIZE), 1e9),
    "overflowing": lambda rows: np.full((3, SIZE), 1e300),
    "reversed": lambda rows: -100 * rows[:3],
    "each elsewhere": lambda rows: 1e6 * np.eye(3, SIZE),
    "one tensor only": lambda rows: np.hstack(
        [rows[:3, : SIZE // 4], np.full((3, SIZE - SIZE // 4), -1e4)]
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("factory", plugin.FACTORIES, ids=lambda factory: factory.name)
def test_three_hostile_devices_of_thirteen_do_not_move_it_far(honest, factory, attack):
    hostile = ATTACKS[attack](honest)
    rows = np.vstack([hostile, honest[3:]])
    truth = honest[3:].mean(axis=0)
    with np.errstate(over="ignore"):
        plain = np.linalg.norm(rows.mean(axis=0) - truth)
    robust = np.linalg.norm(aggregate(factory, rows) - truth)
    assert plain > 20
    # Clipping bounds what one device can do; the others leave the hostile ones out.
    assert robust < (2 * 3 * 10 / 13 if factory is plugin.NORM_CLIPPING else 1.0)


BAD_OPTIONS = [
    (plugin.TRIMMED_MEAN, {"fraction": 0.5}, "fraction must be at least 0 and below 0.5"),
    (plugin.NORM_CLIPPING, {"norm": 0}, "norm must be above 0"),
    (plugin.GEOMETRIC_MEDIAN, {"smoothing": 0}, "smoothing above 0"),
    (plugin.KRUM, {"byzantine": -1}, "byzantine and selected must be at least 0"),
]


@pytest.mark.parametrize(("factory", "options", "message"), BAD_OPTIONS)
def test_an_option_that_will_not_do_is_told(factory, options, message):
    with pytest.raises(StatusError, match=message):
        factory.make(intrinsics(factory), DEFAULTS | options)


BAD_INTRINSICS = {
    "sum": (Intrinsic("federated_sum"), "only means"),
    "integers": (
        Intrinsic(
            "federated_mean",
            (TensorSpec("v", DataType.INT32, (1,)),),
            (TensorSpec("r", DataType.INT32, (1,)),),
        ),
        "dtype float or double",
    ),
    "unknown size": (
        Intrinsic(
            "federated_mean",
            (TensorSpec("v", DataType.FLOAT, (-1,)),),
            (TensorSpec("r", DataType.FLOAT, (-1,)),),
        ),
        "unknown dimension",
    ),
    "two weights": (
        Intrinsic(
            "federated_weighted_mean",
            (TensorSpec("v", DataType.FLOAT), TensorSpec("w", DataType.FLOAT, (2,))),
            (TensorSpec("r", DataType.FLOAT),),
        ),
        "must be one number",
    ),
}


@pytest.mark.parametrize("name", BAD_INTRINSICS)
@pytest.mark.parametrize("factory", plugin.FACTORIES, ids=lambda factory: factory.name)
def test_what_is_no_mean_is_refused(factory, name):
    intrinsic, message = BAD_INTRINSICS[name]
    if factory.joint:
        intrinsic = Intrinsic(JOINT_URI, nested=(intrinsic,))
    with pytest.raises(StatusError, match=message):
        factory.make(intrinsic, DEFAULTS)
