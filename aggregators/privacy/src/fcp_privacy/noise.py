"""Exact samples of the discrete Gaussian and the discrete Laplace distribution.

Noise that is computed in floating point gives away its input in the low bits (Mironov, 2012), so
noise is integers here, and its distribution is the exact one but for less than 2 ** -100.

Both are sampled alike, after Karney, "Sampling exactly from the normal distribution" (2016): a
value is ``sign * (k * scale + j)`` with a small *k* from a table and *j* uniform below the scale,
and is kept with a probability ``exp(-gamma)``. A probability is compared with the first bits of a
uniform number, in double precision; where these bits do not decide, which is so about once in
2 ** 30 times, more bits are drawn and the probability is computed to as many digits.

The compiled loop ``fcp_privacy._loops``, where it is installed, decides alike for the same words.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcp_privacy.randomness import Randomness, Words

Integers = NDArray[np.int64]

#: The largest scale: what is left of a word beside *j* must decide nearly always.
MAX_SCALE = 1 << 31

#: Values drawn at a time: the words of a block stay in the processor's cache.
_BLOCK = 1 << 14
#: Digits of the tables, and of the first exact comparison.
_DIGITS = 60
#: The relative error of a probability in double precision is far below this.
_ERROR = 1e-13
_BITS = 63


@dataclass(frozen=True)
class _Shape:
    """One of the two distributions, over the scale.

    :param weight: how often *k* is proposed, up to a factor.
    :param gamma: of *k* and ``j / scale``, both exact or both arrays.
    """

    weight: Callable[[int], Fraction]
    gamma: Callable[[Any, Any], Any]


#: exp(-x ** 2 / 2) at x = k + y, over what proposing k and y has already.
_GAUSSIAN = _Shape(lambda k: Fraction(k * k, 2), lambda k, y: y * (k + y / 2))
#: exp(-x).
_LAPLACE = _Shape(lambda k: Fraction(k), lambda k, y: y)


def discrete_gaussian(sigma: int, count: int, randomness: Randomness) -> Integers:
    """Draw integers with probabilities proportional to ``exp(-x ** 2 / (2 * sigma ** 2))``.

    :param sigma: between 1 and :data:`MAX_SCALE`. About the standard deviation.
    :returns: shape ``(count,)``, int64.
    :raises ValueError: if sigma is out of range.
    """
    return _draw(_GAUSSIAN, sigma, count, randomness)


def discrete_laplace(scale: int, count: int, randomness: Randomness) -> Integers:
    """Draw integers with probabilities proportional to ``exp(-abs(x) / scale)``.

    :param scale: between 1 and :data:`MAX_SCALE`.
    :returns: shape ``(count,)``, int64.
    :raises ValueError: if the scale is out of range.
    """
    return _draw(_LAPLACE, scale, count, randomness)


def _draw(shape: _Shape, scale: int, count: int, randomness: Randomness) -> Integers:
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"the scale must be from 1 to {MAX_SCALE}, not {scale}")
    drawn = np.empty(count, np.int64)
    bounds, _ = _table(shape)
    parts = (1 << 64) // scale
    limits = (shape is _GAUSSIAN, scale, min(parts, (1 << 64) - 1), float(parts), bounds)
    done = 0
    while done < count:
        # About 7 of 10 proposals are kept.
        wanted = min(_BLOCK, (count - done) * 3 // 2 + 16)
        words = randomness.words(2 * wanted)
        number = -1 if LOOPS is None else LOOPS.propose(*limits, words, drawn[done:])
        if number < 0:
            kept = _propose(shape, scale, words, randomness)[: count - done]
            number = kept.size
            drawn[done : done + number] = kept
        done += number
    return drawn


def _propose(shape: _Shape, scale: int, words: Words, randomness: Randomness) -> Integers:
    """Return those proposals that are kept, of two words each.

    :param randomness: for what the words do not decide.
    """
    first, second = words.reshape(2, -1)
    k = _from_table(shape, first >> np.uint64(1), randomness)
    negative = (first & np.uint64(1)).astype(bool)

    quotient, j = np.divmod(second, np.uint64(scale))
    # What is left of the word beside j is uniform below this, but for the last, partial one.
    parts = (1 << 64) // scale
    usable = quotient < np.uint64(min(parts, (1 << 64) - 1))
    if scale == 1:
        usable[...] = True  # every word is whole

    y = j.astype(np.float64) / scale
    probability = np.exp(-shape.gamma(k.astype(np.float64), y))
    low = quotient.astype(np.float64) / parts
    step = 1.0 / parts + _ERROR
    keep = low + step < probability * (1 - _ERROR)
    for index in np.flatnonzero(~keep & (low - _ERROR <= probability * (1 + _ERROR))):
        gamma = shape.gamma(Fraction(int(k[index])), Fraction(int(j[index]), scale))
        lowest = Fraction(int(quotient[index]), parts)
        keep[index] = _is_below(lowest, Fraction(1, parts), gamma, randomness)

    value: Integers = k * scale + j.astype(np.int64)
    keep &= usable & ~(negative & (value == 0))
    np.negative(value, out=value, where=negative)
    kept: Integers = value[keep]
    return kept


def _from_table(shape: _Shape, words: Words, randomness: Randomness) -> Integers:
    """Return *k* for uniform words of 63 bits."""
    bounds, tails = _table(shape)
    # How many of the tails' probabilities a word is below; they fall with k.
    k = len(bounds) - np.searchsorted(bounds, words, side="right")
    for index in np.flatnonzero(np.isin(words, bounds)):
        # The word is the whole part of a bound, or of several small ones: further bits decide.
        lowest = Fraction(int(words[index]), 1 << _BITS)
        lowest += Fraction(randomness.bits(_BITS), 1 << (2 * _BITS))
        k[index] = sum(lowest < Fraction(tail) for tail in tails)
    return k.astype(np.int64)


@lru_cache
def _table(shape: _Shape) -> tuple[Words, list[Decimal]]:
    """Return, rising, the probabilities of at least 1, 2, ...: of 63 bits, and exact ones."""
    context = Context(prec=_DIGITS)
    weights: list[Decimal] = []
    while not weights or weights[-1] > Decimal(2) ** -140:
        weights.append(_exp(shape.weight(len(weights)), context))
    total = sum(weights, Decimal(0))
    tails = [sum(weights[k:], Decimal(0)) / total for k in range(1, len(weights))]
    tails.reverse()
    bounds = np.array([int(tail * (1 << _BITS)) for tail in tails], np.uint64)
    return bounds, tails


def _is_below(lowest: Fraction, width: Fraction, gamma: Fraction, randomness: Randomness) -> bool:
    """Whether a uniform number of [lowest, lowest + width) is below ``exp(-gamma)``, exactly.

    The number is drawn as far as is needed.
    """
    digits = _DIGITS
    while True:
        context = Context(prec=digits)
        probability = Fraction(_exp(gamma, context))
        error = probability / 10 ** (digits - 5)
        if lowest + width <= probability - error:
            return True
        if lowest >= probability + error:
            return False
        width /= 1 << 64
        lowest += width * randomness.bits(64)
        digits += 20


def _load_loops() -> Any:
    """Return the compiled loop, or None."""
    try:
        return importlib.import_module("fcp_privacy._loops")
    except ImportError:
        return None


#: The compiled loop, if it is installed.
LOOPS: Any = _load_loops()


def _exp(gamma: Fraction, context: Context) -> Decimal:
    """Return ``exp(-gamma)``, rounded to the context's digits."""
    quotient = context.divide(Decimal(-gamma.numerator), Decimal(gamma.denominator))
    return context.exp(quotient)
