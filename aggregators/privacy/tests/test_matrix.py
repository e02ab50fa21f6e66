"""Correlated noise over rounds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_privacy.matrix import optimal_coefficients, toeplitz_sensitivity, tree_sensitivity


@pytest.mark.parametrize(
    ("rounds", "separation", "expected"),
    [(1000, 1000, 10), (1000, 100, 141), (1000, 20, 1968), (2048, 256, 184)],
)
def test_the_squared_sensitivity_of_trees(rounds, separation, expected):
    assert tree_sensitivity(rounds, separation) == expected


@pytest.mark.parametrize(
    ("rounds", "separation", "expected"),
    [(1000, 1000, 3.26500), (1000, 100, 83.7965), (2048, 256, 59.1681)],
)
def test_the_squared_sensitivity_of_the_optimal_toeplitz_matrix(rounds, separation, expected):
    found = toeplitz_sensitivity(optimal_coefficients(rounds), separation)
    assert found == pytest.approx(expected, rel=2e-6)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=7).map(lambda c: sorted(c, reverse=True)),
    st.integers(1, 7),
    st.none() | st.integers(1, 4),
)
def test_no_way_to_take_part_weighs_more(column, separation, most):
    """The theorem against every set of rounds that the separation allows."""
    rounds = len(column)
    matrix = np.zeros((rounds, rounds))
    for first, coefficient in enumerate(column):
        matrix += coefficient * np.eye(rounds, k=-first)
    worst = 0.0
    for chosen in itertools.product((0, 1), repeat=rounds):
        times = np.flatnonzero(chosen)
        if most is not None and len(times) > most:
            continue
        if len(times) > 1 and np.diff(times).min() < separation:
            continue
        column_sum = matrix @ np.array(chosen, float)
        worst = max(worst, float(column_sum @ column_sum))
    assert toeplitz_sensitivity(column, separation, most) == pytest.approx(worst)


def test_columns_that_do_not_fit_the_theorem_are_refused():
    for column in ([1.0, 1.5], [1.0, -0.1]):
        with pytest.raises(ValueError, match="must not"):
            toeplitz_sensitivity(column, 1)
    with pytest.raises(ValueError, match="at least 1"):
        tree_sensitivity(10, 0)


def test_the_optimal_column_is_the_root_of_all_ones():
    column = optimal_coefficients(6)
    assert np.convolve(column, column)[:6] == pytest.approx(np.ones(6))
