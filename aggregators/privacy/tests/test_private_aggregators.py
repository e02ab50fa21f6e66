"""The aggregators with Gaussian noise: their state, their noise, their series, their costs."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.aggregator import JOINT_URI
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import StatusError
from fcp_core.tasks.taskfile import parse_task
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy.accounting import rho_epsilon
from fcp_privacy.blt import fit
from fcp_privacy.clipped import STEPS
from fcp_privacy.correlated import Matrix, Tree
from fcp_privacy.events import Gaussian, Series, from_cost
from fcp_privacy.gaussian import next_clip, resume_clip, values_multiplier
from fcp_privacy.matrix import optimal_coefficients, toeplitz_sensitivity, tree_sensitivity
from fcp_privacy.plugin import ADAPTIVE, GAUSSIAN, MATRIX, TREE

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("a", DataType.FLOAT, (2,)),),
    (TensorSpec("A", DataType.FLOAT, (2,)),),
)
MEAN = Intrinsic(
    "federated_mean",
    (TensorSpec("b", DataType.DOUBLE, (3, 1)),),
    (TensorSpec("B", DataType.DOUBLE, (3, 1)),),
)
COUNT = Intrinsic(
    "federated_sum", (TensorSpec("n", DataType.INT64),), (TensorSpec("N", DataType.INT64),)
)
BOTH = Intrinsic(JOINT_URI, nested=(SUM, MEAN))
OPTIONS = {"clip": 5.0, "noise_multiplier": 1.0}
ADAPTIVE_OPTIONS = {
    "initial_clip": 0.1,
    "quantile": 0.5,
    "clip_learning_rate": 0.2,
    "noise_multiplier": 1.0,
    "clients": 100,
}
MATRIX_OPTIONS = {**OPTIONS, "rounds": 8, "buffers": 3}


def seeded(seed):
    """Return entropy that follows from a seed."""
    count = 0

    def entropy(size):
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}/{count}".encode()).digest(size)

    return entropy


def contribution(size, value, intrinsic=BOTH):
    """Return a contribution of a norm."""
    ones = [np.full(spec.shape, value, spec.dtype.numpy) for spec in inputs(intrinsic)]
    norm = math.sqrt(sum(float(np.sum(np.square(one))) for one in ones))
    return [(one * (size / norm)).astype(one.dtype) for one in ones]


def inputs(intrinsic):
    return [part.inputs[0] for part in intrinsic.nested or (intrinsic,)]


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


# The adaptive clip.


@pytest.mark.tff
def test_the_clip_follows_the_quantile_as_upstream_s_does():
    """Given the same bits: 40 rounds, norms that lie around 3."""
    pytest.importorskip("tensorflow_privacy")
    import tensorflow as tf
    import tensorflow_privacy as tfp

    query = tfp.NoPrivacyQuantileEstimatorQuery(
        initial_estimate=0.1, target_quantile=0.7, learning_rate=0.2, geometric_update=True
    )
    state = query.initial_global_state()
    clip, rng = 0.1, np.random.default_rng(5)
    for _ in range(40):
        norms = rng.lognormal(1.1, 0.5, 50).astype(np.float32)
        theirs = float(state.current_estimate)
        assert clip == pytest.approx(theirs, rel=1e-4)
        clip = next_clip(clip, float(np.mean(norms <= theirs)), 0.7, 0.2)
        sample = query.initial_sample_state(tf.TensorSpec([]))
        params = query.derive_sample_params(state)
        for norm in norms:
            sample = query.accumulate_record(params, sample, tf.constant(norm))
        _, state, _ = query.get_noised_result(sample, state)


def test_the_sums_pay_for_the_count():
    z = values_multiplier(1.0, 5.0)
    assert 1 / z**2 + 1 / (2 * 5.0) ** 2 == pytest.approx(1.0)
    accumulator = ADAPTIVE.make(SUM, ADAPTIVE_OPTIONS)
    assert accumulator.multiplier == pytest.approx(z)
    assert from_cost(accumulator.promise(ReleaseContext(100)).cost) == Gaussian(1.0)


@pytest.mark.parametrize(("size", "grows"), [(50.0, True), (0.01, False)])
def test_the_clip_goes_to_the_norms_from_round_to_round(size, grows):
    state, clips = None, []
    for number in range(12):
        resumed = resume_clip({**ADAPTIVE_OPTIONS, "clip_tensor": "clip"}, state)
        clips.append(resumed.options["clip"])
        assert resumed.tensors["clip"] == np.float32(clips[-1])
        accumulator = ADAPTIVE.make(SUM, {**ADAPTIVE_OPTIONS, **resumed.options})
        for _ in range(100):
            accumulator.accumulate(contribution(size, 1.0, SUM))
        state = accumulator.release(ReleaseContext(100, state, "", seeded(number))).state
    assert clips[0] == np.float32(0.1)
    assert (clips[-1] > 0.2) is grows
    # The noise of the count is 5 of 100.
    steps = np.diff(np.log(clips))
    assert np.abs(steps - (0.1 if grows else -0.1)).max() < 0.06


def test_a_count_with_too_little_noise_is_refused():
    options = {**ADAPTIVE_OPTIONS, "clipped_count_stddev": 0.5}
    with pytest.raises(StatusError, match="below twice"):
        ADAPTIVE.make(SUM, options)


# Series.


def rounds_of(factory, options, count, seed=1, intrinsic=SUM, value=0.0):
    """Release rounds one after the other; return what each released, without the values."""
    state, releases = None, []
    entropy = seeded(seed)
    for _ in range(count):
        accumulator = factory.make(intrinsic, options)
        accumulator.accumulate(contribution(1.0, 1.0, intrinsic) if value else zeros(intrinsic))
        releases.append(accumulator.release(ReleaseContext(1, state, "s", entropy)))
        state = releases[-1].state
    return releases


def zeros(intrinsic):
    return [np.zeros(spec.shape, spec.dtype.numpy) for spec in inputs(intrinsic)]


WIDE = Intrinsic(
    "federated_sum",
    (TensorSpec("a", DataType.DOUBLE, (4_000,)),),
    (TensorSpec("A", DataType.DOUBLE, (4_000,)),),
)


def test_the_noise_of_a_tree_is_that_of_the_nodes_above_a_round():
    releases = rounds_of(TREE, OPTIONS, 16, intrinsic=WIDE)
    sums = np.cumsum([release.tensors[0] for release in releases], axis=0)
    for number, (total, release) in enumerate(zip(sums, releases, strict=True), 1):
        nodes = number.bit_count()
        assert np.std(total) == pytest.approx(5.0 * math.sqrt(nodes), rel=0.06)
        stddev = release.promise.noise[0].stddev
        assert np.std(release.tensors[0]) == pytest.approx(stddev, rel=0.06)
    # After 8 rounds there is one node, whose noise all later sums up to 16 have.
    assert np.allclose(sums[7] - sums[8], -releases[8].tensors[0])


def test_a_tree_begins_anew_after_some_rounds():
    releases = rounds_of(TREE, {**OPTIONS, "restart_every": 4}, 12, intrinsic=WIDE)
    sums = np.cumsum([release.tensors[0] for release in releases], axis=0)
    for number in (4, 8, 12):
        assert np.std(sums[number - 1]) == pytest.approx(5 * math.sqrt(number / 4), rel=0.06)
    event = from_cost(releases[-1].promise.cost)
    assert event.event.rho == pytest.approx(3 * tree_sensitivity(4, 1) / 2)


def test_the_noise_of_a_matrix_is_that_of_its_inverse():
    options = {**OPTIONS, "rounds": 12, "buffers": 3, "separation": 4}
    releases = rounds_of(MATRIX, options, 12, intrinsic=WIDE)
    blt = fit(12, 3)
    inverse = blt.inverse_column(12)
    for number, release in enumerate(releases, 1):
        stddev = 5.0 * math.sqrt(float(np.sum(inverse[:number] ** 2)))
        assert release.promise.noise[0].stddev == pytest.approx(stddev)
        assert np.std(release.tensors[0]) == pytest.approx(stddev, rel=0.06)
        rho = toeplitz_sensitivity(blt.column(number), 4) / 2
        assert from_cost(release.promise.cost).event.rho == pytest.approx(rho)
    # The matrix takes the correlation out again: what is left is noise of its own each round.
    noise = np.array([release.tensors[0] for release in releases]) / 5.0
    column = blt.column(12)
    white = [sum(column[j] * noise[i - j] for j in range(i + 1)) for i in range(12)]
    correlations = np.corrcoef(white)
    assert np.abs(correlations - np.eye(12)).max() < 0.08
    assert np.std(white, axis=1) == pytest.approx(np.ones(12), rel=0.06)


@pytest.mark.parametrize(
    ("factory", "options"), [(TREE, OPTIONS), (MATRIX, {**OPTIONS, "rounds": 9})]
)
def test_a_series_keeps_its_values_and_its_parameters(factory, options):
    noise = rounds_of(factory, options, 9)
    both = rounds_of(factory, options, 9, value=1.0)
    for one, other in zip(noise, both, strict=True):
        assert other.tensors[0] - one.tensors[0] == pytest.approx([0.5**0.5] * 2, rel=1e-4)
    changed = factory.make(SUM, {**options, "noise_multiplier": 2.0})
    context = ReleaseContext(1, noise[0].state, "s")
    with pytest.raises(StatusError, match=r"noise_multiplier was 1 .* would be 2"):
        changed.promise(context)
    with pytest.raises(StatusError, match="Name another series"):
        changed.release(context)


def test_a_series_promises_the_cost_of_all_its_rounds_and_has_no_more():
    options = {**OPTIONS, "rounds": 3, "separation": 2}
    releases = rounds_of(TREE, options, 3)
    promised = from_cost(TREE.make(SUM, options).promise(ReleaseContext(1, None, "s")).cost)
    assert promised == Series("s", promised.event)
    assert promised.event.rho == pytest.approx(tree_sensitivity(3, 2) / 2)
    assert from_cost(releases[-1].promise.cost) == promised
    assert from_cost(releases[0].promise.cost).event.rho < promised.event.rho
    with pytest.raises(StatusError, match="has had its 3 rounds"):
        TREE.make(SUM, options).promise(ReleaseContext(1, releases[-1].state, "s"))


@pytest.mark.parametrize(("rounds", "separation", "buffers"), [(100, 10, 3), (1000, 100, 4)])
def test_few_buffers_are_nearly_as_good_as_the_best_matrix(rounds, separation, buffers):
    blt, best = fit(rounds, buffers), optimal_coefficients(rounds)
    column = blt.column(rounds)
    assert (np.diff(column) <= 0).all()
    assert column[-1] >= 0
    error = math.sqrt(blt.sensitivity(rounds, separation)) * blt.error(rounds)
    # The inverse of the best one, summed up, is that one again.
    least = math.sqrt(toeplitz_sensitivity(best, separation) * np.dot(best, best))
    assert error < 1.03 * least
    assert np.convolve(column, blt.inverse_column(rounds))[:rounds] == pytest.approx(
        np.eye(rounds)[0], abs=1e-9
    )


def test_the_sensitivities_that_were_computed_elsewhere():
    tree = Tree.make(SUM, {**OPTIONS, "separation": 20})
    assert tree.sensitivity(1000) == 1968
    matrix = Matrix.make(SUM, {**OPTIONS, "separation": 256, "rounds": 2048, "buffers": 4})
    # That of the best matrix is 59.1681.
    assert matrix.sensitivity(2048) == pytest.approx(59.1681, rel=0.02)
    # What docs/privacy.md says of it.
    rho = matrix.sensitivity(2048) / (2 * 6**2)
    assert rho == pytest.approx(0.81, abs=0.005)
    assert rho_epsilon(rho, 1e-10) == pytest.approx(8.9, abs=0.05)


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
