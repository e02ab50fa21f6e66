"""The distribution of the noise, and where its bits come from."""

import math
import multiprocessing
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest

from fcp_privacy import noise
from fcp_privacy.noise import MAX_SCALE, discrete_gaussian, discrete_laplace
from fcp_privacy.randomness import Randomness

#: Standard deviations that are exceeded about once in a million draws.
FAR = 5.0


def gaussian(value, scale):
    return math.exp(-value * value / (2 * scale * scale))


def laplace(value, scale):
    return math.exp(-abs(value) / scale)


def chi_square(values, density, scale):
    """Return by how many standard deviations the counts are off, tails together."""
    reach = 5 * scale
    total = sum(density(value, scale) for value in range(-60 * scale, 60 * scale + 1))
    expected = [len(values) * density(v, scale) / total for v in range(-reach, reach + 1)]
    counts = [np.count_nonzero(values == value) for value in range(-reach, reach + 1)]
    expected.append(len(values) - sum(expected))
    counts.append(len(values) - sum(counts))
    pairs = [(c, e) for c, e in zip(counts, expected, strict=True) if e > 20]
    statistic = sum((c - e) ** 2 / e for c, e in pairs)
    freedom = len(pairs) - 1
    # Wilson and Hilferty: the cube root is nearly normal.
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("scale", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(
    ("draw", "density"), [(discrete_gaussian, gaussian), (discrete_laplace, laplace)]
)
def test_small_scales_have_the_exact_distribution(draw, density, scale):
    values = draw(scale, 200_000, Randomness())
    assert abs(chi_square(values, density, scale)) < FAR


@pytest.mark.parametrize("scale", [1000, 1 << 20, MAX_SCALE])
@pytest.mark.parametrize(
    ("draw", "variance", "fourth"), [(discrete_gaussian, 1, 3), (discrete_laplace, 2, 24)]
)
def test_large_scales_have_the_moments(draw, variance, fourth, scale):
    count = 200_000
    values = draw(scale, count, Randomness()) / scale
    assert abs(values.mean()) < FAR * math.sqrt(variance / count)
    error = math.sqrt((fourth - variance**2) / count)
    # A discrete variance differs from the continuous one by about scale ** -2.
    assert abs(values.var() - variance) < FAR * error + 1e-5


def test_a_wrong_distribution_is_noticed():
    """What is rounded is no discrete Gaussian; the test of the small scales sees it."""
    rng = np.random.default_rng(5)
    rounded = np.rint(rng.normal(0, 1, 200_000)).astype(np.int64)
    assert abs(chi_square(rounded, gaussian, 1)) > FAR


class Chosen(Randomness):
    """Gives words that were chosen, then random ones."""

    def __init__(self, words):
        super().__init__()
        self.chosen = [np.array(word, np.uint64) for word in words]
        self.further = 0

    def words(self, count):
        return self.chosen.pop(0).reshape(-1) if self.chosen else super().words(count)

    def bits(self, count):
        self.further += 1
        return super().bits(count)


@pytest.mark.slow
def test_where_the_first_bits_do_not_decide_further_ones_do():
    """A word on the edge of what is kept is kept as often as the edge cuts it."""
    scale, j, tries = 3, 1, 1000
    cells = (1 << 64) // scale
    cut = Context(prec=60).exp(Decimal(-1) / 18) * cells
    word = int(cut) * scale + j
    kept = 0
    for _ in range(tries):
        chosen = Chosen([[(1 << 64) - 2, word]])  # k = 0, not negative
        kept += noise._propose(noise._GAUSSIAN, scale, chosen.words(2), chosen).size
        assert chosen.further == 1
    part = float(cut % 1)
    assert 0.1 < part < 0.9
    assert abs(kept / tries - part) < FAR * math.sqrt(part * (1 - part) / tries)


def test_an_exact_comparison_is_right_on_both_sides():
    gamma = Fraction(1, 18)
    close = Fraction(math.exp(-1 / 18))
    tiny = Fraction(1, 1 << 90)
    near = close - Fraction(1, 1 << 50), close + Fraction(1, 1 << 50)
    assert noise._is_below(near[0], tiny, gamma, Randomness())
    assert not noise._is_below(near[1], tiny, gamma, Randomness())


@pytest.mark.parametrize("scale", [0, -1, MAX_SCALE + 1])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(ValueError, match="the scale must be from 1"):
        discrete_gaussian(scale, 1, Randomness())


def test_streams_differ_and_a_seed_repeats():
    assert not np.array_equal(Randomness().words(8), Randomness().words(8))
    assert np.array_equal(Randomness(7).words(8), Randomness(7).words(8))
    assert not np.array_equal(Randomness(7).words(8), Randomness(8).words(8))
    assert 0 <= Randomness().bits(5) < 32


def _draw(queue):
    queue.put(discrete_gaussian(1 << 20, 4, Randomness()).tolist())


def test_processes_that_were_forked_off_draw_their_own():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_draw, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    first, second = queue.get(), queue.get()
    for child in children:
        child.join()
    assert first != second


def test_nothing_is_drawn_for_nothing():
    assert discrete_gaussian(5, 0, Randomness()).size == 0


@pytest.mark.parametrize("scale", [1, 2, 3, 1000, 1 << 30, noise.MAX_SCALE])
@pytest.mark.parametrize("draw", [discrete_gaussian, discrete_laplace])
def test_the_compiled_loop_decides_as_numpy_does(draw, scale, monkeypatch):
    compiled = draw(scale, 50_000, Randomness(5))
    monkeypatch.setattr(noise, "LOOPS", None)
    assert np.array_equal(compiled, draw(scale, 50_000, Randomness(5)))


if noise.LOOPS is not None:

    def test_the_compiled_loop_leaves_what_a_word_does_not_decide():
        """A word that is one of the table's bounds; and one whose bits do not decide."""
        bounds, _ = noise._table(noise._GAUSSIAN)
        kept = np.zeros(4, np.int64)
        limits = (True, 1 << 30, 1 << 34, float(1 << 34), bounds)
        for bound in (bounds[-1], bounds[-3], bounds[0]):
            words = np.array([int(bound) << 1, 0], np.uint64)
            assert noise.LOOPS.propose(*limits, words, kept) == -1
        above = (1 << 64) - 1  # k is 0, and negative
        # j is half the scale: kept below exp(-1 / 8) of 2 ** 34.
        threshold = math.floor(math.exp(-1 / 8) * 2**34)
        for quotient, answer in ((threshold - 2, 1), (threshold, -1), (threshold + 2, 0)):
            words = np.array([above, (quotient << 30) | (1 << 29)], np.uint64)
            assert noise.LOOPS.propose(*limits, words, kept) == answer
        with pytest.raises(ValueError, match="do not fit"):
            noise.LOOPS.propose(True, 1 << 30, 1, 1.0, bounds[:1], np.zeros(2, np.uint64), kept)
