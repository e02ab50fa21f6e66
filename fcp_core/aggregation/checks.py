"""Checks of an intrinsic's configuration that several aggregators share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.protocol.checkpoint.wire import BYTES, fields
from fcp_core.protocol.joining import LARGE
from fcp_core.protocol.status import Code, StatusError

M = TypeVar("M", bound=Message)

MEAN_URI = "federated_mean"
WEIGHTED_MEAN_URI = "federated_weighted_mean"

#: More than any checkpoint can carry: one tensor of it is limited to 2 GiB.
_MAX_ELEMENTS = 1 << 31


def bad(intrinsic: Intrinsic, problem: str) -> StatusError:
    """Return the error for an intrinsic that cannot be served."""
    return StatusError(Code.INVALID_ARGUMENT, f"intrinsic {intrinsic.uri!r}: {problem}")


def check_counts(
    intrinsic: Intrinsic, inputs: int, outputs: int, parameters: tuple[int, ...] = (0,)
) -> None:
    """Refuse an intrinsic with other numbers of inputs, outputs or parameters, or nested ones.

    :param parameters: the allowed numbers of parameters.
    :raises StatusError: INVALID_ARGUMENT.
    """
    for what, got, want in (
        ("inputs", len(intrinsic.inputs), (inputs,)),
        ("outputs", len(intrinsic.outputs), (outputs,)),
        ("parameters", len(intrinsic.parameters), parameters),
        ("nested intrinsics", len(intrinsic.nested), (0,)),
    ):
        if got not in want:
            expected = " or ".join(map(str, want))
            raise bad(intrinsic, f"{got} {what}, where {expected} are expected")


def check_same(intrinsic: Intrinsic, spec: TensorSpec, output: TensorSpec) -> None:
    """Refuse an output of another dtype or shape than its input, or unknown dimensions.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if (spec.dtype, spec.shape) != (output.dtype, output.shape):
        raise bad(intrinsic, f"input {spec} and output {output} differ in dtype or shape")
    if not spec.is_fully_defined:
        raise bad(intrinsic, f"input {spec} has an unknown dimension; every one must be known")
    if math.prod(spec.shape) > _MAX_ELEMENTS:
        raise bad(intrinsic, f"input {spec} has more than {_MAX_ELEMENTS} elements")


def check_numeric(intrinsic: Intrinsic, spec: TensorSpec) -> None:
    """Refuse a string tensor.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if spec.dtype is DataType.STRING:
        raise bad(intrinsic, f"input {spec} is a string tensor; a numeric one is expected")


def check_mean(intrinsic: Intrinsic) -> None:
    """Check the configuration of a mean or of what stands in for one.

    TensorFlow Federated averages floating-point values only (an integer value is refused when the
    computation is written), so nothing else is accepted here.

    :raises StatusError: INVALID_ARGUMENT.
    """
    weighted = intrinsic.uri == WEIGHTED_MEAN_URI
    check_counts(intrinsic, inputs=1 + weighted, outputs=1)
    value = intrinsic.inputs[0]
    if value.dtype not in (DataType.FLOAT, DataType.DOUBLE):
        raise bad(intrinsic, f"value {value} must be of dtype float or double")
    check_same(intrinsic, value, intrinsic.outputs[0])
    if weighted:
        weight = intrinsic.inputs[1]
        if weight.dtype is DataType.STRING or weight.shape not in ((), (1,)):
            raise bad(intrinsic, f"weight {weight} must be one number: a scalar or a vector of one")


def integer_parameter(intrinsic: Intrinsic, value: Tensor, what: str, minimum: int) -> int:
    """Return the value of a parameter that is one integer.

    :raises StatusError: INVALID_ARGUMENT if it is not an integer, not one, or below *minimum*.
    """
    if value.dtype.kind not in "iu" or value.size != 1:
        raise bad(intrinsic, f"{what} must be one integer, not {value.dtype}{list(value.shape)}")
    number = int(value.reshape(())[()])
    if number < minimum:
        raise bad(intrinsic, f"{what} must be at least {minimum}, not {number}")
    return number


def same_configuration(one: Intrinsic, other: Intrinsic) -> bool:
    """Whether two intrinsics are equal, the values of their parameters included."""
    return (
        one == other
        and all(
            np.array_equal(mine.value, theirs.value)
            for mine, theirs in zip(one.parameters, other.parameters, strict=True)
        )
        and all(map(same_configuration, one.nested, other.nested))
    )


class _Configured(Protocol):
    _intrinsic: Intrinsic


def check_mergeable(one: _Configured, other: _Configured) -> None:
    """Refuse to merge accumulators of two kinds, or two intrinsics, which they keep so named.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if type(other) is not type(one) or not same_configuration(other._intrinsic, one._intrinsic):
        raise bad(one._intrinsic, "only states of one configuration can be merged")


def in_order(options: Any, data: Any) -> tuple[Any, Any]:
    """Return the options and the state that an accumulator's ``load`` was given.

    Up to 0.2.0 the state came first, and the options could be left out.
    """
    if not isinstance(options, bytes):
        return options, data
    warnings.warn(
        "load(intrinsic, data, options) is deprecated and goes with the next release: "
        "write load(intrinsic, options, data)",
        DeprecationWarning,
        stacklevel=3,
    )
    return data or {}, options


def parse_state(intrinsic: Intrinsic, message: Callable[[], M], data: bytes) -> M:
    """Parse a dumped state.

    :raises StatusError: INVALID_ARGUMENT if *data* is no such message.
    """
    state = message()
    try:
        state.ParseFromString(data)
    except DecodeError as error:
        name = state.DESCRIPTOR.name
        raise bad(intrinsic, f"the state is not a {name} ({error})") from None
    return state


def parse_in_place(
    intrinsic: Intrinsic, message: Callable[[], M], data: bytes | memoryview
) -> tuple[M, Mapping[int, memoryview]]:
    """Parse a dumped state without a copy of what is large in it.

    :returns: the message without its large fields of bytes, and views on those by number.
    :raises StatusError: INVALID_ARGUMENT if *data* is no such message.
    """
    view, at = memoryview(data), 0
    large: dict[int, memoryview] = {}
    others: list[memoryview] = []
    try:
        for field in fields(view, 0, len(view)):
            if field.wire_type == BYTES and field.end - field.start >= LARGE:
                large[field.number] = view[field.start : field.end]
            else:
                others.append(view[at : field.end])
            at = field.end
    except StatusError as error:
        raise bad(intrinsic, f"the state is damaged ({error.message})") from None
    return parse_state(intrinsic, message, b"".join(others)), large


def check_length(intrinsic: Intrinsic, what: str, got: int, want: int) -> None:
    """Refuse a part of a dumped state that has not the length it must have.

    :raises StatusError: INVALID_ARGUMENT.
    """
    if got != want:
        raise bad(intrinsic, f"the state has {got} {what}, where {want} are expected")
