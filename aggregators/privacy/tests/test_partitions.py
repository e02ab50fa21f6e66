"""Which groups may be shown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_privacy.partitions import (
    PartitionSelection,
    delta_of_one,
    gaussian_threshold,
    laplace_threshold,
)


@pytest.mark.parametrize(("groups", "expected"), [(1, 28.6310), (4, 122.614)])
def test_thresholds_of_laplace_noise(groups, expected):
    assert laplace_threshold(1, 1e-6, 1, groups, 2 * groups) == pytest.approx(expected, abs=6e-4)


def test_a_threshold_of_laplace_noise_for_a_large_delta():
    scale, delta = 2.0, 0.9
    each = delta_of_one(delta, 2)
    assert each > 0.5
    found = laplace_threshold(1, delta, 1, 1, scale)
    # The chance that noise of one device alone reaches it is what one group may cost.
    assert 1 - math.exp((found - 1) / scale) / 2 == pytest.approx(each)


def test_a_device_alone_passes_a_gaussian_threshold_as_rarely_as_delta_says():
    threshold = gaussian_threshold(1e-6, 1, 3, 4.0)
    alone = math.erfc((threshold - 1) / 4.0 / math.sqrt(2)) / 2
    assert alone == pytest.approx(delta_of_one(1e-6, 6), rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        (PartitionSelection(1, 1e-5), 11, 22),
        (PartitionSelection(1, 1e-5, least=20), 30, 41),
        (PartitionSelection(1, 1e-6, groups=4), 53, 105),
    ],
)
def test_the_crossovers(rule, first, second):
    assert (rule.first_crossover, rule.second_crossover) == (first, second)


def test_the_probabilities_of_groups():
    rule = PartitionSelection(1, 1e-5)
    found = [rule.probability(devices) for devices in (11, 12, 22, 23)]
    assert found == pytest.approx([0.348448, 0.760311, 0.999995, 1.0], abs=6e-7)
    assert rule.probability(0) == 0


@given(st.floats(0.05, 5), st.floats(1e-9, 0.1), st.integers(1, 4), st.integers(1, 30))
def test_one_device_changes_the_choice_within_epsilon_and_delta(epsilon, delta, groups, least):
    rule = PartitionSelection(epsilon, delta, groups, least)
    each_epsilon, each_delta = epsilon / groups, delta_of_one(delta, groups)
    assert rule.probability(least - 1) == 0
    for devices in range(least - 1, rule.second_crossover + 2):
        fewer, more = rule.probability(devices), rule.probability(devices + 1)
        slack = each_delta * (1 + 1e-6) + 1e-12
        assert more <= math.exp(each_epsilon) * fewer + slack
        assert 1 - fewer <= math.exp(each_epsilon) * (1 - more) + slack
    assert rule.probability(rule.second_crossover + 1) == 1


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        PartitionSelection(0, 1e-5)
    with pytest.raises(ValueError, match="at least one group"):
        PartitionSelection(1, 1e-5, groups=0)
    with pytest.raises(ValueError, match="least must be"):
        PartitionSelection(1, 1e-5, least=0)
