"""Random numbers that depend on their purpose and not on the order of drawing.

A number is a hash of the seed, its purpose, the device and how often the device drew before. So a
device behaves the same whatever others do, and whether it is looked at alone or in an array.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

_MASK = (1 << 64) - 1
_SEED, _PURPOSE = 0xD1342543DE82EF95, 0xAF251AF3B0F025B5
_DEVICE, _COUNT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UNIT = 2.0**-53


class Purpose(IntEnum):
    """What a number is for."""

    FIRST_WAKE = 1
    DELAY = 2
    JITTER = 3
    LATENCY = 4
    DURATION = 5
    DROP = 6
    DROP_TIME = 7
    SILENCE = 8
    ELIGIBILITY = 9


class Draws:
    """Uniform numbers in [0, 1) for one seed."""

    def __init__(self, seed: int) -> None:
        self._keys = [
            _mix((seed * _SEED + purpose * _PURPOSE) & _MASK) for purpose in range(max(Purpose) + 1)
        ]

    def one(self, purpose: Purpose, device: int, count: int) -> float:
        """Draw for one device.

        :param count: how often the device drew for this purpose before.
        """
        return (_mix(self._keys[purpose] + device * _DEVICE + count * _COUNT & _MASK) >> 11) * _UNIT

    def many(self, purpose: Purpose, devices: Ints, counts: npt.NDArray[np.uint32]) -> Floats:
        """Draw for many devices; the same numbers as :meth:`one`."""
        x = devices.astype(np.uint64) * np.uint64(_DEVICE)
        x += counts.astype(np.uint64) * np.uint64(_COUNT)
        x += np.uint64(self._keys[purpose])
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
        x ^= x >> np.uint64(31)
        numbers: Floats = (x >> np.uint64(11)).astype(np.float64) * _UNIT
        return numbers


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * _FIRST & _MASK
    x = (x ^ (x >> 27)) * _SECOND & _MASK
    return x ^ (x >> 31)
