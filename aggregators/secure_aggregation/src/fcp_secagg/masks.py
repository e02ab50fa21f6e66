"""Masks: what a key expands to, element by element below the modulus, and sums of them.

A key's stream is AES-256 in counter mode over zeros. Each sample is the fewest whole bytes that
hold the modulus, big-endian, of which the surplus high bits are cleared. If the modulus is a power
of two, the sample is the element; otherwise samples that would favour some elements are skipped.

The stream is made and added in pieces that fit a processor's cache. What adds is a compiled loop if
it is installed (``fcp_secagg._loops``), otherwise NumPy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fcp_secagg.packing import Vector, VectorSpec
from fcp_secagg.primitives import mask_seed

#: Bytes of a stream at a time: whole samples of any size, and whole blocks of the cipher.
_CHUNK = 1680 * 64
_BLOCK = 16
_ZEROS = bytes(_CHUNK)


def _compiled() -> Any:
    """Return the compiled loops, or None."""
    try:
        return importlib.import_module("fcp_secagg._loops")
    except ImportError:
        return None


LOOPS: Any = _compiled()


class MaskSum:
    """A sum of masks of one vector, modulo its modulus.

    :param spec: the vector.
    :param session: the session's id.
    :param loops: the compiled loops; None: NumPy.
    """

    def __init__(self, spec: VectorSpec, session: bytes, loops: Any = LOOPS) -> None:
        self._spec, self._session, self._loops = spec, session, loops
        self._width = -(-spec.bits // 8)
        # Sums wrap around at the dtype's end, of which any power of two is a divisor.
        self._total: NDArray[Any] = np.zeros(
            spec.length, np.uint32 if spec.is_power and self._width <= 4 else np.uint64
        )
        # Samples are read as numbers of 4 or 8 bytes that end where they end.
        self._stream = np.zeros(8 + _CHUNK + _BLOCK, np.uint8)

    def add(self, key: bytes, sign: int) -> None:
        """Add the mask of a key, or subtract it.

        :param key: 32 bytes.
        :param sign: 1 or -1.
        """
        self.add_all([(key, sign)])

    def add_all(self, keys: Sequence[tuple[bytes, int]]) -> None:
        """Add the masks of several keys, piece by piece, so that the sum's piece stays in cache."""
        streams = [(self._encryptor(key), sign) for key, sign in keys]
        if self._spec.is_power:
            self._add_plain(streams)
            return
        for encryptor, sign in streams:
            self._add_sampled(encryptor, sign)

    def value(self) -> Vector:
        """Return the sum: ``uint64[length]``."""
        total = self._total.astype(np.uint64)
        if self._spec.is_power:
            total &= np.uint64(self._spec.modulus - 1)
        return total

    def _encryptor(self, key: bytes) -> Any:
        spec = self._spec
        seed = mask_seed(key, self._session, spec.bits, spec.length, spec.name)
        return Cipher(algorithms.AES(seed), modes.CTR(bytes(_BLOCK))).encryptor()

    def _add_plain(self, streams: Sequence[tuple[Any, int]]) -> None:
        width = self._width
        body = self._stream.data[8:]
        step = _CHUNK // width
        for start in range(0, self._spec.length, step):
            total = self._total[start : start + step]
            size = len(total) * width
            zeros, stream = _ZEROS[:size], self._stream[8 : 8 + size]
            samples = self._samples(len(total))
            for encryptor, sign in streams:
                encryptor.update_into(zeros, body)
                if self._loops is not None:
                    self._loops.add(total, stream, width, sign)
                else:
                    (np.add if sign > 0 else np.subtract)(total, samples, out=total)

    def _add_sampled(self, encryptor: Any, sign: int) -> None:
        spec, width = self._spec, self._width
        body = self._stream.data[8:]
        modulus = np.uint64(spec.modulus)
        skipped = np.uint64((2**spec.bits - spec.modulus) % spec.modulus)
        bits = np.uint64(2**spec.bits - 1)
        done = 0
        while done < spec.length:
            # A few more than are missing, as some are skipped.
            count = min(_CHUNK // width, 2 * (spec.length - done) + 8)
            # The next piece begins where this one ends, at any byte of a block.
            encryptor.update_into(memoryview(_ZEROS)[: count * width], body)
            samples = self._samples(count).astype(np.uint64) & bits
            samples = samples[samples >= skipped][: spec.length - done]
            samples %= modulus
            total = self._total[done : done + len(samples)]
            if sign < 0:
                samples = modulus - samples
            total += samples  # below 2**63
            np.subtract(total, modulus, out=total, where=total >= modulus)
            done += len(samples)

    def _samples(self, count: int) -> NDArray[Any]:
        """Return the stream's first samples, with bits of the ones before above their own."""
        width = self._width
        word = 4 if width <= 4 else 8
        return np.ndarray(
            (count,), f">u{word}", self._stream.data, offset=8 + width - word, strides=(width,)
        )


def masks(
    specs: Sequence[VectorSpec], session: bytes, keys: Iterable[tuple[bytes, int]]
) -> dict[str, Vector]:
    """Return the sums of the masks of keys, by the vectors' names.

    :param keys: each with its sign, 1 or -1.
    """
    given = list(keys)
    found = {}
    for spec in specs:
        total = MaskSum(spec, session)
        total.add_all(given)
        found[spec.name] = total.value()
    return found


def add(first: Vector, second: Vector, spec: VectorSpec) -> Vector:
    """Return the sum of two vectors modulo the modulus."""
    total = first + second  # below 2**63
    if spec.is_power:
        return total & np.uint64(spec.modulus - 1)
    modulus = np.uint64(spec.modulus)
    np.subtract(total, modulus, out=total, where=total >= modulus)
    return total


def subtract(first: Vector, second: Vector, spec: VectorSpec) -> Vector:
    """Return the difference of two vectors modulo the modulus."""
    return add(first, np.uint64(spec.modulus) - second, spec)
