"""Random bits for noise: an AES-CTR stream, keyed anew by the operating system for each release."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

#: Bytes of a key.
KEY_BYTES = 32


class Randomness:
    """A stream of uniform bits that nobody can foresee.

    Two streams never give the same bits, also not in a process that was forked off: each has a key
    of its own. Make one for each release and do not keep it.

    :param unsafe_seed: for tests only: the same seed gives the same bits, and whoever knows it can
        take the noise off.
    :param entropy: returns so many secret random bytes, of which the key is made.
    """

    def __init__(
        self,
        unsafe_seed: int | None = None,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        key = entropy(KEY_BYTES) if unsafe_seed is None else unsafe_seed.to_bytes(KEY_BYTES, "big")
        # Not loaded with the plugin, which the command line looks at for its commands.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> Words:
        """Return uniform words.

        :returns: shape ``(count,)``, uint64.
        """
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)

    def bits(self, count: int) -> int:
        """Return a uniform number below ``2 ** count``."""
        size = -(-count // 8)
        return int.from_bytes(self._stream.update(bytes(size)), "big") >> (8 * size - count)
