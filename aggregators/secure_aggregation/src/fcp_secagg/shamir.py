"""Shamir's secret sharing over the field of 2**31 + 11 elements, for many secrets at a time.

A secret is cut into pieces of 31 bits from its low end. Each piece is the constant term of a random
polynomial of its own; the share with the index i is what the polynomials are at i + 1. Products of
two elements stay below 2**63, so that all arithmetic is in 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    distances to the other points (the dual of a Reed-Solomon code).

    :param indices: of the shares, distinct.
    :param threshold: t.
    """

    def __init__(self, indices: Sequence[int], threshold: int) -> None:
        points = [index + 1 for index in indices]
        row = np.array([pow(_distances(x, points), -1, PRIME) for x in points], np.uint64)
        bases = np.array(points, np.uint64)
        self._rows = []
        for _ in range(len(points) - threshold):
            self._rows.append(row)
            row = row * bases % np.uint64(PRIME)

    def holds(self, shares: Sequence[bytes]) -> bool:
        """Tell it of shares of one size, in the order of the indices."""
        values = np.frombuffer(b"".join(shares), ">u4").astype(np.uint64)
        values = values.reshape(len(shares), -1)
        return not any(
            np.any((values * row[:, None] % PRIME).sum(axis=0, dtype=np.uint64) % PRIME)
            for row in self._rows
        )


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
        choices = [indices]
        if len(indices) > self._threshold + 1:
            choices += [
                indices[:place] + indices[place + 1 :] for place in reversed(range(len(indices)))
            ]
        for chosen in choices:
            found = self._agreed(chosen, shares, size)
            if found is not None:
                return found
        raise ValueError("a device told a wrong share of a key")

    def _agreed(
        self, indices: tuple[int, ...], shares: Mapping[int, bytes], size: int
    ) -> bytes | None:
        """Return the secret if all these shares are of one polynomial."""
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
        return found if agreement.holds(ordered) else None


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
    points = [index + 1 for index in indices]
    numerators = []
    for point in points:
        above = 1
        for other in points:
            if other != point:
                above = above * other % PRIME
        numerators.append(above)
    # One factor (other - point) for each of the others: the sign follows from their number.
    sign = -1 if len(points) % 2 == 0 else 1
    denominators = [sign * _distances(point, points) for point in points]
    return np.array(
        [
            above * pow(below, -1, PRIME) % PRIME
            for above, below in zip(numerators, denominators, strict=True)
        ],
        np.uint64,
    )


def _distances(point: int, points: Sequence[int]) -> int:
    """Return the product of a point's distances to the others, in the field."""
    product = 1
    for other in points:
        if other != point:
            product = product * (point - other) % PRIME
    return product
