"""Sums and means with noise: what is clipped, how much noise, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import strategies as st
from private_sums import (
    ADAPTIVE_OPTIONS,
    BOTH,
    COUNT,
    MATRIX_OPTIONS,
    MEAN,
    OPTIONS,
    SUM,
    contribution,
    seeded,
)

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import StatusError
from fcp_core.tasks.taskfile import parse_task
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy.clipped import STEPS
from fcp_privacy.events import Gaussian, from_cost
from fcp_privacy.plugin import ADAPTIVE, GAUSSIAN, MATRIX, TREE


class _Conformance(AggregatorConformance):
    intrinsic = BOTH

    def refused(self):
        bad = [np.zeros((2,), np.float32), np.full((3, 1), np.nan)]
        return st.just(bad)


class TestGaussian(_Conformance):
    factory = GAUSSIAN
    options = OPTIONS


class TestAdaptive(_Conformance):
    max_examples = 8
    factory = ADAPTIVE
    options = ADAPTIVE_OPTIONS


class TestTree(_Conformance):
    # Its state is that of the first one.
    max_examples = 8
    factory = TREE
    options = OPTIONS


class TestMatrix(_Conformance):
    max_examples = 8
    factory = MATRIX
    options = MATRIX_OPTIONS


def test_a_contribution_is_clipped_over_all_its_tensors_and_never_above():
    accumulator = GAUSSIAN.make(BOTH, OPTIONS)
    for size in (1.0, 4.9, 4.999, 5.1, 1e30, 1e-30):
        one = GAUSSIAN.make(BOTH, OPTIONS)
        one.accumulate(contribution(size, 1.0))
        norm = math.sqrt(sum(int(value) ** 2 for value in one.sums)) * one.step
        assert norm <= 5.0
        assert norm == pytest.approx(min(size, 5.0), rel=1e-6, abs=1e-8)
        accumulator.merge(one)
    assert (accumulator.num_inputs, accumulator.within) == (6, 4)
    huge = [np.full(2, 3e38, np.float32), np.full((3, 1), 1e308)]
    accumulator.accumulate(huge)


def test_a_mean_is_divided_by_what_the_task_is_to_have_and_a_sum_by_nothing():
    accumulator = GAUSSIAN.make(BOTH, {"clip": 100.0, "noise_multiplier": 1e-3})
    for _ in range(3):
        accumulator.accumulate([np.array([1, 2], np.float32), np.ones((3, 1))])
    total, mean = accumulator.release(ReleaseContext(goal_count=10)).tensors
    assert total == pytest.approx([3, 6], abs=1)
    assert mean == pytest.approx(np.full((3, 1), 0.3), abs=0.1)


def test_counts_come_out_whole():
    accumulator = GAUSSIAN.make(COUNT, OPTIONS)
    accumulator.accumulate([np.array(3)])
    (total,) = accumulator.release(ReleaseContext(goal_count=1)).tensors
    assert total.dtype == np.int64


def test_the_noise_is_as_it_is_described():
    intrinsic = Intrinsic(
        JOINT_URI,
        nested=(
            Intrinsic(
                "federated_sum",
                (TensorSpec("a", DataType.DOUBLE, (20_000,)),),
                (TensorSpec("A", DataType.DOUBLE, (20_000,)),),
            ),
            Intrinsic(
                "federated_mean",
                (TensorSpec("b", DataType.DOUBLE, (20_000,)),),
                (TensorSpec("B", DataType.DOUBLE, (20_000,)),),
            ),
        ),
    )
    accumulator = GAUSSIAN.make(intrinsic, {"clip": 2.0, "noise_multiplier": 1.5})
    release = accumulator.release(ReleaseContext(goal_count=7, entropy=seeded(1)))
    for tensor, noise, stddev in zip(
        release.tensors, release.promise.noise, (3.0, 3.0 / 7), strict=True
    ):
        assert noise.stddev == pytest.approx(stddev)
        assert np.std(tensor) == pytest.approx(stddev, rel=0.05)
        assert np.mean(tensor) == pytest.approx(0, abs=0.05 * stddev)
    assert release.promise.noise[0].output == "A"
    assert from_cost(release.promise.cost) == Gaussian(1.5)
    assert accumulator.promise(ReleaseContext(goal_count=7)) == release.promise


def test_an_epsilon_is_as_good_as_a_noise_multiplier():
    accumulator = GAUSSIAN.make(SUM, {"clip": 1.0, "epsilon": 1.0, "delta": 1e-6})
    assert accumulator.multiplier == pytest.approx(4.22468, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": 1.0, "noise_multiplier": 0.0}, "no privacy to speak of"),
        ({"clip": 1.0, "noise_multiplier": -1.0}, "no privacy to speak of"),
        ({"clip": 0.0, "noise_multiplier": 1.0}, "clip must be above 0"),
        ({"noise_multiplier": 1.0}, "'clip' must be set"),
        ({"clip": 1.0}, "noise_multiplier, or epsilon"),
        ({"clip": 1.0, "epsilon": 0.0, "delta": 1e-6}, "epsilon"),
        ({"clip": 1.0, "epsilon": 1.0, "delta": 1.0}, "delta"),
        ({"clip": 1.0, "epsilon": 1e20, "delta": 1e-6}, "no privacy to speak of"),
    ],
)
def test_options_that_promise_nothing_are_refused(options, words):
    with pytest.raises(StatusError, match=words):
        GAUSSIAN.make(SUM, options)


def test_weighted_means_are_refused():
    weighted = Intrinsic(
        "federated_weighted_mean",
        (TensorSpec("v", DataType.FLOAT), TensorSpec("w", DataType.FLOAT)),
        (TensorSpec("m", DataType.FLOAT),),
    )
    with pytest.raises(StatusError, match="only sums and unweighted means"):
        GAUSSIAN.make(weighted, OPTIONS)


# What a task is refused.


TASK_FILE = """
[task]
population = "phones/all"
name = "latency"
goal_count = 2
aggregators = { federated_sum = "dp_gaussian" }
options = { dp_gaussian = { clip = 1.0, epsilon = 0.5, delta = 1e-8 } }
[[query]]
collection_uri = "app:/launches"
[query.vectors]
x = { dtype = "float32", length = 3 }
[result.aggregate]
total = { uri = "federated_sum", vectors = ["x"], dtype = "float32", length = 3 }
"""


@pytest.fixture
def check(tmp_path):
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        overrides={"plugins": "fcp_privacy.plugin:PrivacyPlugin"},
    )
    return lambda spec: " ".join(plugins.check_task(spec))


def series(name, **options):
    return (
        parse_task(TASK_FILE)
        .to_spec()
        .replace(aggregators={"federated_sum": name}, options={name: options})
    )


def test_three_lines_of_a_task_file_make_it_private(check):
    assert check(parse_task(TASK_FILE).to_spec()) == ""


def test_what_devices_are_not_asked_to_keep_is_not_counted_on(check):
    spec = series("dp_matrix", clip=1.0, noise_multiplier=1.0, rounds=10, separation=4)
    assert "nothing asks them to: add the eligibility policy minimum_separation" in check(spec)
    asked = {**spec.options, "minimum_separation": {"minimum_separation": 2, "current_index": 1}}
    spec = spec.replace(eligibility=["minimum_separation"], options=asked)
    assert "after 4 rounds" in check(spec)
    asked["minimum_separation"] = {"minimum_separation": 3, "current_index": 1}
    assert check(spec.replace(options=asked)) == ""
    assert check(series("dp_tree", clip=1.0, noise_multiplier=1.0)) == ""


def test_sums_that_the_server_sees_only_as_such_are_not_clipped(check):
    spec = parse_task(TASK_FILE).to_spec().replace(protocol="secagg")
    assert "under the protocol 'secagg' the server sees sums of many" in check(spec)


def test_the_grid_is_finer_than_any_float_of_the_result():
    accumulator = GAUSSIAN.make(SUM, OPTIONS)
    assert accumulator.step * STEPS == 5.0


def test_scaled_outputs_have_their_part_of_one_norm() -> None:
    """A count of half a point with noise of its own, beside a sum of another size."""
    joint = Intrinsic(JOINT_URI, nested=(SUM, MEAN))
    options = {"clip": 5.0, "noise_multiplier": 0.01, "clients": 10, "scales": ("A=4",)}
    accumulator = GAUSSIAN.make(joint, options)
    value = [np.array([0.5, 0.0], np.float32), np.array([[1.0], [0], [0]])]
    accumulator.accumulate(value)  # its norm is that of (2, 1): it is within the clip
    assert np.allclose(accumulator.report()[0], [0.5, 0], atol=1e-6)
    promised = accumulator.promise(ReleaseContext(10, seeded(1)))
    assert [noise.stddev for noise in promised.noise] == [0.05 / 4, 0.05 / 10]
    # (12, 0) is 12 beside (0): scaled down to 5, and that is 1.25 without the factor.
    other = GAUSSIAN.make(joint, options)
    other.accumulate([np.array([3.0, 0], np.float32), np.zeros((3, 1))])
    assert np.allclose(other.report()[0], [1.25, 0], atol=1e-6)


def test_a_factor_makes_no_number_that_nothing_bounds() -> None:
    joint = Intrinsic(JOINT_URI, nested=(MEAN,))
    options = {"clip": 5.0, "noise_multiplier": 0.01, "clients": 1, "scales": ("B=1e10",)}
    accumulator = GAUSSIAN.make(joint, options)
    accumulator.accumulate([np.array([[1.7e308], [-1.7e308], [0]])])
    assert np.linalg.norm(accumulator.report()[0]) * 1e10 <= 5.0


@pytest.mark.parametrize("scales", [("A",), ("A=x",), ("A=0",), ("A=nan",), ("Z=1",), ("=1",)])
def test_factors_of_nothing_are_refused(scales: tuple[str, ...]) -> None:
    with pytest.raises(StatusError, match="scales "):
        GAUSSIAN.make(BOTH, {**OPTIONS, "scales": scales})
