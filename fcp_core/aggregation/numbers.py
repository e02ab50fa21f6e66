"""What keeps sums finite: nothing infinite comes in, and no sum leaves the range of its dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fcp_core.aggregation.spec import Tensor
from fcp_core.protocol.status import Code, StatusError

#: The option of an aggregator that lets NaN and infinities in.
ALLOW_NON_FINITE = "allow_non_finite"

#: Elements looked at at a time: they stay in the processor's cache.
_CHUNK = 1 << 15


def check_finite(name: str, value: Tensor) -> None:
    """Refuse a tensor with a NaN or an infinity in it.

    :param name: the tensor's, for the message.
    :raises StatusError: INVALID_ARGUMENT.
    """
    if value.dtype.kind != "f":
        return
    flat = np.reshape(value, -1)
    for start in range(0, flat.size, _CHUNK):
        finite = np.isfinite(flat[start : start + _CHUNK])
        if not finite.all():
            index = start + int(np.argmin(finite))
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"tensor {name!r} has {flat[index]} among its numbers (element {index}); an "
                f"aggregator takes finite ones only, unless its option {ALLOW_NON_FINITE} is on",
            )


def check_sum(
    name: str,
    total: Tensor,
    value: Tensor,
    weight: Any = None,
    code: Code = Code.INVALID_ARGUMENT,
) -> None:
    """Refuse a tensor that is not finite, or whose sum with *total* would leave the dtype.

    :param name: the tensor's, for the message.
    :param total: what it is to be added to.
    :param value: of as many elements; of *total*'s dtype, or an integer dtype that fits into it.
    :param weight: what the value is multiplied by first, of *total*'s dtype; None: nothing.
    :param code: that of the error.
    :raises StatusError: with *code*; INVALID_ARGUMENT for a value that is not finite.
    """
    flat, values = np.reshape(total, -1), np.reshape(value, -1)
    for start in range(0, flat.size, _CHUNK):
        old, part = flat[start : start + _CHUNK], values[start : start + _CHUNK]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            added = part.astype(total.dtype, copy=False) if weight is None else part * weight
            new = old + added
        if total.dtype.kind == "f":
            good = np.isfinite(new)
        elif total.dtype.kind == "u":
            good = new >= old
        else:
            # The sum of two numbers of one sign that has the other one went around.
            good = ((new ^ old) & (new ^ added)) >= 0
        if not good.all():
            check_finite(name, value)
            index = start + int(np.argmin(good))
            times = "" if weight is None else f" times the weight {weight}"
            raise StatusError(
                code,
                f"tensor {name!r} has {values[index]}{times} (element {index}), which brings the "
                f"sum of {flat[index]} out of the range of {total.dtype}",
            )


def check_weight(name: str, weight: Any, greatest: float = 0.0) -> None:
    """Refuse a weight that is negative, NaN or infinite, or above a limit.

    :param name: the weight's tensor, for the message.
    :param greatest: the limit; 0: none.
    :raises StatusError: INVALID_ARGUMENT.
    """
    # Comparing with a signalling NaN raises a flag that says nothing here.
    with np.errstate(invalid="ignore"):
        good = bool(weight >= 0) and bool(weight < math.inf)
    if not good:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"weight {name!r} must be zero or above and finite, not {weight}"
        )
    if greatest and weight > greatest:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"weight {name!r} is {weight}; max_weight is {greatest:g}"
        )


def check_norm(name: str, value: Tensor, greatest: float) -> None:
    """Refuse a tensor whose Euclidean norm is above a limit.

    :param name: the tensor's, for the message.
    :param greatest: the limit; 0: none.
    :raises StatusError: INVALID_ARGUMENT.
    """
    if not greatest:
        return
    flat = np.reshape(value, -1)
    # Scaled by its largest number, whose square may be infinite.
    scale = max((abs(float(flat.max())), abs(float(flat.min())))) if flat.size else 0.0
    norm = scale
    if 0 < scale < math.inf:
        norm = scale * float(np.linalg.norm(flat.astype(np.float64) / scale))
    if not norm <= greatest:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"tensor {name!r} has the norm {norm:g}; max_norm is {greatest:g}",
        )
