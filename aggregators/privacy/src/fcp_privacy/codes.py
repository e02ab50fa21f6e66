"""Codes of values, which are counted with noise: how many values so many codes stand for.

Source: Flajolet and Martin, "Probabilistic counting algorithms for data base applications" (1985).
"""

from __future__ import annotations

import numpy as np

from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol import sketches
from fcp_core.protocol.status import Code, StatusError

#: How many values a device may bring at most.
MOST_VALUES = 1 << 16
_RANKS = np.arange(1, sketches.MAX_RANK + 1)
#: log of the probability that a value has not the code of a register and a rank, by rank.
_MISSED = np.log1p(-(0.5**_RANKS) / sketches.REGISTERS)


def codes_of(values: float) -> float:
    """Return how many codes so many distinct values have, on average."""
    return float(-sketches.REGISTERS * np.expm1(values * _MISSED).sum())


def values_of(codes: float) -> tuple[float, float]:
    """Return how many distinct values have so many codes, and how much one code more adds.

    A number below 0, which noise makes, stands for itself.
    """
    if codes <= 0:
        return codes, 1.0
    low, high = 0.0, 1.0
    while codes_of(high) < codes and high < 1e15:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if codes_of(middle) < codes else (low, middle)
    slope = float(-sketches.REGISTERS * (_MISSED * np.exp(high * _MISSED)).sum())
    return high, 1 / slope


def check_codes(name: str, codes: Tensor) -> None:
    """Refuse what is no code.

    :param name: of the column.
    :raises StatusError: INVALID_ARGUMENT.
    """
    ranks = sketches.split_codes(codes)[1]
    known = (codes > 0) & (codes < sketches.MAX_CODE)
    good = (codes == 0) | (known & (ranks > 0) & (ranks <= sketches.MAX_RANK))
    if codes.ndim != 1 or not good.all():
        raise StatusError(Code.INVALID_ARGUMENT, f"column {name!r} has what is no code of a value")


def number_of(intrinsic: Intrinsic, name: str, value: Tensor) -> float:
    """Return a parameter that is one number.

    :raises StatusError: INVALID_ARGUMENT if it is none.
    """
    if value.dtype.kind not in "iuf" or value.size != 1:
        raise bad(intrinsic, f"{name} must be one number, not {value.dtype}{list(value.shape)}")
    return float(value.reshape(())[()])
