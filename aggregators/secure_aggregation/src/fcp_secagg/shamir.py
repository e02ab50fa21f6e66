"""Shamir's secret sharing over the field of 2**31 + 11 elements, for many secrets at a time.

A secret is cut into pieces of 31 bits from its low end. Each piece is the constant term of a random
polynomial of its own; the share with the index i is what the polynomials are at i + 1. Products of
two elements stay below 2**63, so that all arithmetic is in 64 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from secrets import token_bytes

import numpy as np
from numpy.typing import NDArray

from fcp_secagg.primitives import Secrets

PRIME = 2**31 + 11
_PIECE_BITS = 31

Elements = NDArray[np.uint64]


def piece_count(size: int) -> int:
    """Return into how many pieces a secret of *size* bytes is cut."""
    return -(-8 * size // _PIECE_BITS)


def share_size(size: int) -> int:
    """Return the size of a share of a secret of *size* bytes."""
    return 4 * piece_count(size)


def split(secret: bytes | bytearray, threshold: int, count: int, secrets: Secrets) -> list[bytes]:
    """Share a secret.

    :param threshold: how many shares give it away; at least 2.
    :param count: how many shares are made; at least *threshold*.
    :returns: the shares in the order of their indices; 4 bytes for each piece, big-endian.
    :raises ValueError: if the threshold does not fit.
    """
    if not 2 <= threshold <= count:
        raise ValueError(f"the threshold must be from 2 to {count}, not {threshold}")
    pieces = _cut(secret)
    coefficients = _elements((threshold - 1) * len(pieces), secrets).reshape(threshold - 1, -1)
    points = np.arange(1, count + 1, dtype=np.uint64)[:, None]
    values: Elements = np.zeros((count, len(pieces)), np.uint64)
    for row in coefficients:  # Horner, from the highest
        values = (values + row) * points % np.uint64(PRIME)
    values = (values + pieces) % np.uint64(PRIME)
    return [row.tobytes() for row in values.astype(">u4")]


class Reconstruction:
    """Puts secrets together from shares of the same indices.

    :param indices: of the shares, distinct; as many as the threshold.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = tuple(indices)
        self._weights = _weights(self.indices)

    def secret(self, shares: Sequence[bytes], size: int) -> bytes:
        """Return a secret.

        :param shares: in the order of the indices.
        :param size: of the secret, in bytes.
        :raises ValueError: if the shares are not of a secret of that size.
        """
        wanted = share_size(size)
        if any(len(share) != wanted for share in shares) or len(shares) != len(self.indices):
            raise ValueError(f"shares of a secret of {size} bytes have {wanted} bytes each")
        values = np.frombuffer(b"".join(shares), ">u4").astype(np.uint64)
        products = values.reshape(len(shares), -1) * self._weights[:, None] % PRIME
        # Fewer than 2**32 terms below 2**32 stay below 2**64.
        pieces = products.sum(axis=0, dtype=np.uint64) % PRIME
        return _join(pieces, size)


class Agreement:
    """Tells whether shares are all of one polynomial, if there are more than the threshold.

    Values at n points are those of a polynomial of a degree below t if and only if their sum with
    the weights w(x) * x**k is zero for each k below n - t, where 1 / w(x) is the product of x's
    distances to the other points (the dual of a Reed-Solomon code). If one value is wrong, at x,
    the sum of k = 1 is x times that of k = 0; of all of them two random combinations are looked at,
    which are both zero for wrong values with a chance of 2**-62.

    :param indices: of the shares, distinct.
    :param threshold: t.
    """

    def __init__(self, indices: Sequence[int], threshold: int) -> None:
        self._indices = indices
        points, more = _points(indices), len(indices) - threshold
        weights = _inverses(_distances(points))
        self._rows = [weights, weights * points % np.uint64(PRIME)][:more]
        for _ in range(2 if more > 2 else 0):
            row: Elements = np.zeros_like(points)
            for coefficient in _elements(more, token_bytes):
                row = (row * points + coefficient) % np.uint64(PRIME)
            self._rows.append(weights * row % np.uint64(PRIME))

    def sums(self, shares: Sequence[bytes]) -> list[Elements]:
        """Return sums that are zero if the shares, of one size, are of one polynomial.

        :returns: ``uint64[piece]``, that of k = 0 first and that of k = 1 then.
        """
        values = np.frombuffer(b"".join(shares), ">u4").astype(np.uint64)
        values = values.reshape(len(shares), -1)
        products = (values * row[:, None] % np.uint64(PRIME) for row in self._rows)
        return [product.sum(axis=0, dtype=np.uint64) % PRIME for product in products]

    def wrong(self, sums: Sequence[Elements]) -> int | None:
        """Return the index of the only share that can be wrong, from at least two sums."""
        for first, second in zip(sums[0].tolist(), sums[1].tolist(), strict=True):
            if first:
                index = second * pow(first, -1, PRIME) % PRIME - 1
                return index if index in self._indices else None
        return None


class Reconstructions:
    """Puts secrets together; what follows from the indices of shares alone is done once.

    :param threshold: how many shares are needed.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._known: dict[tuple[int, ...], tuple[Reconstruction, Agreement]] = {}

    def secret(self, shares: Mapping[int, bytes], size: int) -> bytes:
        """Return a secret from its shares, by their indices.

        One wrong share is left out if there are two more than are needed. With one more it is
        noticed, and with just as many it is not.

        :raises ValueError: if there are too few, they do not fit, or wrong ones remain.
        """
        if len(shares) < self._threshold:
            raise ValueError(f"{self._threshold} shares are needed, there are {len(shares)}")
        indices = tuple(sorted(shares))
        found, wrong = self._agreed(indices, shares, size)
        if found is None and wrong is not None:
            rest = tuple(index for index in indices if index != wrong)
            found, _ = self._agreed(rest, shares, size)
        if found is None:
            raise ValueError("a device told a wrong share of a key")
        return found

    def _agreed(
        self, indices: tuple[int, ...], shares: Mapping[int, bytes], size: int
    ) -> tuple[bytes | None, int | None]:
        """Return the secret if all these shares are of one polynomial, or who may be wrong."""
        if indices not in self._known:
            self._known[indices] = (
                Reconstruction(indices[: self._threshold]),
                Agreement(indices, self._threshold),
            )
        reconstruction, agreement = self._known[indices]
        ordered = [shares[index] for index in indices]
        found = reconstruction.secret(ordered[: self._threshold], size)
        if any(len(share) != len(ordered[0]) for share in ordered):
            raise ValueError("shares of one secret have one size")
        sums = agreement.sums(ordered)
        if not any(each.any() for each in sums):
            return found, None
        return None, agreement.wrong(sums) if len(sums) > 1 else None


def _cut(secret: bytes | bytearray) -> Elements:
    number = int.from_bytes(secret, "big")
    mask = (1 << _PIECE_BITS) - 1
    count = piece_count(len(secret))
    return np.array(
        [number >> _PIECE_BITS * place & mask for place in reversed(range(count))], np.uint64
    )


def _join(pieces: Elements, size: int) -> bytes:
    number = 0
    for piece in pieces.tolist():
        # A piece of the field may have 32 bits; an honest one has 31.
        number = number << _PIECE_BITS | piece & ((1 << _PIECE_BITS) - 1)
    return (number & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def _elements(count: int, secrets: Secrets) -> Elements:
    """Return uniform elements of the field."""
    found = np.empty(0, np.uint64)
    while len(found) < count:
        # 33 bits hold the field nearly four times: drawing again is rare.
        drawn = np.frombuffer(secrets(8 * (count - len(found) + 8)), ">u8")
        limit = np.uint64(2**64 // PRIME * PRIME)
        drawn = drawn[drawn < limit] % np.uint64(PRIME)
        found = np.concatenate([found, drawn.astype(np.uint64)])
    return found[:count]


def _weights(indices: Sequence[int]) -> Elements:
    """Return what each share is multiplied with (Lagrange, at 0)."""
    if len(set(indices)) < len(indices):
        raise ValueError("an index comes twice")
    points = _points(indices)
    # Of each: the product of the others, divided by that of their distances to it.
    product = functools.reduce(lambda one, other: one * other % PRIME, points.tolist())
    if len(indices) % 2 == 0:
        product = PRIME - product
    below = _distances(points) * points % np.uint64(PRIME)
    return _inverses(below) * np.uint64(product) % np.uint64(PRIME)


def _points(indices: Sequence[int]) -> Elements:
    return np.array(indices, np.uint64) + np.uint64(1)


def _distances(points: Elements) -> Elements:
    """Return the product of each point's distances to the others, in the field."""
    factors: Elements = (points[:, None] + np.uint64(PRIME) - points) % np.uint64(PRIME)
    np.fill_diagonal(factors, 1)
    while (width := factors.shape[1]) > 1:
        half = width // 2
        factors[:, :half] = factors[:, :half] * factors[:, width - half :] % np.uint64(PRIME)
        factors = factors[:, : width - half]
    return factors[:, 0]


def _inverses(elements: Elements) -> Elements:
    return np.array([pow(element, -1, PRIME) for element in elements.tolist()], np.uint64)
