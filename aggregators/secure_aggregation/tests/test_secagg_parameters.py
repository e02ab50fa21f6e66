"""Who is whose neighbour, and what a cohort must be like, against exact fractions."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_secagg import primitives
from fcp_secagg.graphs import FullGraph, HararyGraph, shuffled
from fcp_secagg.parameters import (
    Adversary,
    Hypergeometric,
    Requirements,
    UnmetRequirementsError,
    choose,
    find_subgraph,
)


@given(st.integers(3, 30), st.integers(1, 14), st.integers())
def test_signs_and_lists_of_a_circle_are_consistent(size, half, seed):
    degree = min(2 * half + 1, size - 1 + size % 2)
    order = shuffled(size, random.Random(seed).randbytes)
    graph = HararyGraph(order, degree, 2)
    for client in range(size):
        listed = list(graph.neighbours(client))
        assert len(set(listed)) == degree
        assert listed[degree // 2] == client
        for place, other in enumerate(listed):
            assert graph.index(client, other) == place
            assert graph.index(other, client) is not None
            if other != client:
                assert graph.adds(client, other) != graph.adds(other, client)
        for other in set(range(size)) - set(listed):
            assert graph.index(client, other) is None


def test_a_worked_circle():
    graph = HararyGraph([3, 0, 4, 1, 2], 3, 2)
    assert list(graph.neighbours(4)) == [0, 4, 1]
    assert list(graph.neighbours(3)) == [2, 3, 0]
    assert graph.adds(4, 0)
    assert not graph.adds(4, 1)


def test_everybody_adds_the_masks_of_lower_ids():
    graph = FullGraph(4, 3)
    assert list(graph.neighbours(2)) == [0, 1, 2, 3]
    assert [graph.adds(2, other) for other in (0, 1, 3)] == [True, True, False]
    assert graph.index(1, 3) == 3


def test_a_shuffle_is_uniform_enough():
    rng = random.Random(5)
    counts = {}
    for _ in range(3000):
        order = tuple(shuffled(3, rng.randbytes))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.parametrize(
    ("size", "degree", "threshold"), [(5, 4, 2), (5, 7, 2), (5, 3, 4), (5, 3, 1)]
)
def test_graphs_that_cannot_be_are_refused(size, degree, threshold):
    with pytest.raises(ValueError, match=r"degree|threshold"):
        HararyGraph(list(range(size)), degree, threshold)


def exactly(total, marked, drawn, count):
    return Fraction(
        math.comb(marked, count) * math.comb(total - marked, drawn - count),
        math.comb(total, drawn),
    )


@given(st.integers(1, 40), st.data())
def test_quantiles_are_those_of_exact_fractions(total, data):
    marked = data.draw(st.integers(0, total))
    drawn = data.draw(st.integers(0, total))
    chance = data.draw(st.sampled_from([2.0**-8, 2.0**-20, 2.0**-41]))
    got = Hypergeometric(total, marked, drawn)
    possible = range(max(0, drawn + marked - total), min(marked, drawn) + 1)
    exact = {count: exactly(total, marked, drawn, count) for count in possible}
    below = {count: sum(exact[c] for c in possible if c <= count) for count in possible}
    above = {count: sum(exact[c] for c in possible if c >= count) for count in possible}
    # A chance that is equal to the limit but for rounding says nothing of either.
    if all(abs(float(v) / chance - 1) > 1e-9 for v in (*below.values(), *above.values())):
        assert got.lower_quantile(chance) == min(c for c in possible if below[c] >= chance)
        assert got.upper_quantile(chance) == max(c for c in possible if above[c] >= chance)


def searched(size, adversarial, dropout, lying):
    """Return the first degree and threshold that do, by sums of exact fractions."""
    bad, gone = int(adversarial * size), int(dropout * size)
    stay = size - gone
    for others in range(2, size - 1, 2):
        apart = (
            0
            if others > bad + gone
            else (
                Fraction(size * (size - others - 1), 2)
                * Fraction(math.comb(bad + gone, others), math.comb(size, others))
            )
        )
        if apart >= Fraction(1, 2**41):
            continue
        tail, low = Fraction(0), min(bad, others)
        while tail + exactly(size, bad, others, low) < Fraction(1, 2**41 * size):
            tail += exactly(size, bad, others, low)
            low -= 1
        found, high = Fraction(0), max(0, others + stay - size)
        while found + exactly(size, stay, others, high) < Fraction(1, 2**20 * size):
            found += exactly(size, stay, others, high)
            high += 1
        if lying:
            low = math.ceil(Fraction(low + others) / 2 - Fraction(5, 8))
        if high > low:
            return others + 1, max(low + 1, 2)
    return None


@pytest.mark.parametrize(
    ("size", "adversarial", "dropout", "lying"),
    [
        (40, Fraction(1, 20), Fraction(1, 20), False),
        (100, Fraction(1, 10), Fraction(1, 10), False),
        (100, Fraction(1, 20), Fraction(1, 3), True),
        (120, Fraction(1, 5), Fraction(1, 4), False),
        (300, Fraction(1, 20), Fraction(1, 5), True),
        (10, Fraction(3, 10), Fraction(3, 10), True),
    ],
)
def test_the_search_finds_what_exact_fractions_find(size, adversarial, dropout, lying):
    kind = Adversary.SEMI_MALICIOUS_SERVER if lying else Adversary.CURIOUS_SERVER
    wanted = Requirements(kind, float(adversarial), float(dropout), 1)
    exact = searched(size, adversarial, dropout, lying)
    if exact is None:
        with pytest.raises(UnmetRequirementsError):
            find_subgraph(size, wanted)
    else:
        assert find_subgraph(size, wanted) == exact


def test_neighbours_grow_like_the_logarithm_of_the_cohort():
    wanted = Requirements(Adversary.CURIOUS_SERVER, 0.05, 0.1, 1)
    degrees = [find_subgraph(10**power, wanted)[0] for power in (2, 3, 4, 5)]
    assert degrees == sorted(degrees)
    assert degrees[-1] < 3 * degrees[0]


@pytest.mark.parametrize(
    ("size", "wanted", "words"),
    [
        (4, Requirements(Adversary.SEMI_MALICIOUS_SERVER, 0, 0.2, 5), "no sum of at least 5"),
        (2, Requirements(Adversary.SEMI_MALICIOUS_SERVER, 0.3, 0, 2), "needs more devices"),
        (50, Requirements(Adversary.NONE, 0.1, 0, 2), "must be 0"),
        (50, Requirements(Adversary.CURIOUS_SERVER, 0.5, 0.45, 2), "0.95; nothing protects"),
        (50, Requirements(Adversary.SEMI_MALICIOUS_SERVER, 0.1, 0.45, 2), "twice the drop-out"),
        (50, Requirements(Adversary.CURIOUS_SERVER, 1.0, 0.0, 2), "from 0 to below 1"),
        (2_000_000, Requirements(Adversary.CURIOUS_SERVER, 0, 0, 2), "from 1 to 1000000"),
    ],
)
def test_a_cohort_that_cannot_be_protected_is_refused_in_words(size, wanted, words):
    with pytest.raises(UnmetRequirementsError, match=words):
        choose(size, wanted)


def test_no_liar_can_split_a_small_cohort():
    """Two sets of neighbours, one told of a death and one not, have an honest device in common."""
    for size in range(3, 60):
        wanted = Requirements(Adversary.SEMI_MALICIOUS_SERVER, 0.1, 0.25, 2)
        found = choose(size, wanted)
        assert found.minimum >= math.ceil(0.75 * size)
        assert 2 * found.threshold > found.degree + (0.1 * size if found.full else 0)
        assert found.threshold <= found.minimum
        assert f"cohorts of {size} devices" in str(found)


def test_same_compares_what_is_equal():
    assert primitives.same(b"ab", b"ab")
    assert not primitives.same(b"ab", b"ac")
