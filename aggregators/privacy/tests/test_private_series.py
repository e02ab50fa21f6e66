"""Noise over many rounds: clips that adapt, trees and matrices, and what a series costs."""

import math

import numpy as np
import pytest
from private_sums import (
    ADAPTIVE_OPTIONS,
    OPTIONS,
    SUM,
    contribution,
    inputs,
    seeded,
)

from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import StatusError
from fcp_privacy.accounting import rho_epsilon
from fcp_privacy.blt import fit
from fcp_privacy.correlated import Matrix, Tree
from fcp_privacy.events import Gaussian, Series, from_cost
from fcp_privacy.gaussian import next_clip, resume_clip, values_multiplier
from fcp_privacy.matrix import optimal_coefficients, toeplitz_sensitivity, tree_sensitivity
from fcp_privacy.plugin import ADAPTIVE, MATRIX, TREE


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
