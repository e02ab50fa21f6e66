"""What mechanisms cost, against figures that were computed elsewhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_privacy.accounting import (
    epsilon_rho,
    gaussian_delta,
    gaussian_rho,
    gaussian_sigma,
    laplace_scale,
    log_normal_tail,
    rho_epsilon,
    rho_multiplier,
)

epsilons = st.floats(1e-3, 50)
deltas = st.floats(1e-12, 0.4)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [
        (1, 1e-5, 3.73063),
        (1, 1e-6, 4.22468),
        (0.5, 1e-6, 8.05762),
        (2, 1e-6, 2.23048),
        (8, 1e-6, 0.652935),
        (1, 1e-10, 5.86778),
    ],
)
def test_the_noise_of_the_exact_gaussian_mechanism(epsilon, delta, sigma):
    assert gaussian_sigma(epsilon, delta) == pytest.approx(sigma, rel=3e-6)
    assert gaussian_sigma(epsilon, delta, 5.0) == pytest.approx(5 * sigma, rel=3e-6)


@pytest.mark.parametrize(
    ("rho", "at_1e6", "at_1e10"),
    [
        (0.1, 2.142, 2.882),
        (0.2, 3.131, 4.167),
        (0.5, 5.222, 6.839),
        (0.81, 6.876, 8.922),
        (1, 7.766, 10.034),
        (2, 11.689, 14.871),
    ],
)
def test_the_epsilon_of_a_rho(rho, at_1e6, at_1e10):
    assert rho_epsilon(rho, 1e-6) == pytest.approx(at_1e6, abs=6e-4)
    assert rho_epsilon(rho, 1e-10) == pytest.approx(at_1e10, abs=6e-4)


@given(epsilons, deltas)
def test_the_noise_is_the_least_that_will_do(epsilon, delta):
    sigma = gaussian_sigma(epsilon, delta)
    assert gaussian_delta(sigma, epsilon) <= delta
    assert gaussian_delta(sigma * 0.999, epsilon) > delta * (1 - 1e-9)


@given(epsilons, deltas)
def test_a_rho_for_an_epsilon_stays_within_it(epsilon, delta):
    rho = epsilon_rho(epsilon, delta)
    assert rho_epsilon(rho, delta) <= epsilon
    assert rho_epsilon(rho * 1.0001, delta) > epsilon


@given(st.floats(1e-3, 1e3))
def test_a_rho_and_its_noise_multiplier(multiplier):
    assert rho_multiplier(gaussian_rho(multiplier)) == pytest.approx(multiplier)


def test_the_conversion_beats_the_simple_bound():
    for rho in (0.01, 0.1, 1.0):
        assert rho_epsilon(rho, 1e-6) < rho + 2 * math.sqrt(rho * math.log(1e6))
    assert rho_epsilon(0, 1e-6) == 0


def test_far_tails_go_on_from_near_ones():
    near, far = log_normal_tail(25 - 1e-9), log_normal_tail(25 + 1e-9)
    assert far == pytest.approx(near, rel=1e-8)
    assert log_normal_tail(0) == pytest.approx(math.log(0.5))


def test_the_scale_of_laplace_noise():
    assert laplace_scale(0.5, 3) == 6


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be above 0 and below 1"):
        rho_epsilon(1, delta)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_numbers_that_promise_nothing_are_refused(value):
    with pytest.raises(ValueError, match="epsilon must be above 0 and finite"):
        gaussian_sigma(value, 1e-6)
    with pytest.raises(ValueError, match="noise_multiplier must be above 0 and finite"):
        gaussian_rho(value)
