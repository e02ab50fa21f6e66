"""Which tensors of a task are summed under masks, and modulo what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from fcp_core.aggregation.configuration import flat_inputs, parse_configuration
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.packing import MAX_MODULUS, Vector, VectorSpec

SUM_URI = "federated_secure_sum"
BITWIDTH_URI = "federated_secure_sum_bitwidth"
MODULAR_URI = "federated_secure_modular_sum"

URIS = (SUM_URI, BITWIDTH_URI, MODULAR_URI)

_DTYPES = (DataType.INT32, DataType.INT64, DataType.UINT64)


@dataclass(frozen=True)
class Aggregand:
    """A tensor that is summed under masks.

    :param bound: the greatest element of a device's tensor.
    :param modulus: of a modular sum; None: sums are exact.
    """

    tensor: TensorSpec
    bound: int
    modulus: int | None = None

    def vector(self, devices: int) -> VectorSpec:
        """Return the vector of a sum over so many devices.

        :raises ValueError: if such a sum has no room.
        """
        needed = self.modulus or self.bound * devices + 1
        # No sample of a mask is skipped if the modulus is a power of two.
        modulus = self.modulus or max(2, 1 << (needed - 1).bit_length())
        if modulus > MAX_MODULUS:
            raise ValueError(
                f"the sum of {self.tensor} over {devices} devices, with elements up to "
                f"{self.bound}, may reach {needed - 1}; sums under masks end at 2**62"
            )
        return VectorSpec(self.tensor.name, math.prod(self.tensor.shape), modulus)

    def to_tensor(self, total: Vector) -> Tensor:
        """Return a sum as a tensor.

        :raises StatusError: OUT_OF_RANGE if it does not fit the dtype.
        """
        dtype = self.tensor.dtype.numpy
        if int(total.max()) > np.iinfo(dtype).max:
            raise StatusError(
                Code.OUT_OF_RANGE,
                f"the sum of tensor {self.tensor.name!r} reaches {total.max()}, no {dtype}",
            )
        return total.astype(dtype).reshape(self.tensor.shape)


@dataclass(frozen=True)
class Inputs:
    """What devices bring to a task.

    :param secure: the tensors that are summed under masks.
    :param plain: all others.
    """

    secure: tuple[Aggregand, ...]
    plain: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, aggregation: bytes) -> Inputs:
        """Read a serialized aggregation configuration.

        :raises StatusError: INVALID_ARGUMENT, naming the intrinsic that cannot be served.
        """
        secure: list[Aggregand] = []
        plain: list[TensorSpec] = []
        for intrinsic in parse_configuration(aggregation):
            if intrinsic.uri in URIS:
                secure.append(aggregand_of(intrinsic))
            else:
                plain += flat_inputs(intrinsic)
        return cls(tuple(secure), tuple(dict.fromkeys(plain)))


def aggregand_of(intrinsic: Intrinsic) -> Aggregand:
    """Return what an intrinsic sums under masks.

    :raises StatusError: INVALID_ARGUMENT if it has not one integer tensor of a known shape, and
        one number that bounds it.
    """
    if len(intrinsic.inputs) != 1 or len(intrinsic.outputs) != 1 or intrinsic.nested:
        raise _bad(intrinsic, "it takes one tensor and gives one")
    (spec,), (output,) = intrinsic.inputs, intrinsic.outputs
    if spec.dtype not in _DTYPES:
        raise _bad(intrinsic, f"{spec} must be of an integer dtype")
    if not spec.is_fully_defined or 0 in spec.shape:
        raise _bad(intrinsic, f"every dimension of {spec} must be known, and not 0")
    if (spec.dtype, spec.shape) != (output.dtype, output.shape):
        raise _bad(intrinsic, f"input {spec} and output {output} differ in dtype or shape")
    number = _parameter(intrinsic)
    largest = int(np.iinfo(spec.dtype.numpy).max)
    if intrinsic.uri == MODULAR_URI:
        if not 2 <= number <= min(largest, MAX_MODULUS):
            raise _bad(intrinsic, f"the modulus must be from 2 to {min(largest, MAX_MODULUS)}")
        return Aggregand(spec, number - 1, number)
    if intrinsic.uri == BITWIDTH_URI:
        if not 0 < number <= 62:
            raise _bad(intrinsic, f"the bit width must be from 1 to 62, not {number}")
        number = (1 << number) - 1
    if not 0 <= number <= largest:
        raise _bad(intrinsic, f"the greatest element must be from 0 to {largest}, not {number}")
    return Aggregand(spec, number)


def problems_of(aggregation: bytes, sizes: Sequence[int]) -> list[str]:
    """Say why a task cannot be summed under masks, a sentence each.

    :param sizes: how many devices a cohort may have.
    """
    try:
        inputs = Inputs.of(aggregation)
        for aggregand in inputs.secure:
            for size in sizes:
                aggregand.vector(size)
    except (DecodeError, StatusError, ValueError) as error:
        return [f"secure aggregation cannot take it: {getattr(error, 'message', error)}."]
    if not inputs.secure:
        return [
            "secure aggregation has nothing to hide in it: none of its intrinsics is "
            f"{', '.join(URIS)}. Use those, or another protocol."
        ]
    return []


def _parameter(intrinsic: Intrinsic) -> int:
    # A modular sum may have some more, which say what is left out of the result.
    if not intrinsic.parameters or (intrinsic.parameters[1:] and intrinsic.uri != MODULAR_URI):
        raise _bad(intrinsic, "it needs one parameter, which bounds the elements")
    value = intrinsic.parameters[0].value
    if value.dtype.kind not in "iu" or value.size != 1:
        raise _bad(intrinsic, f"its parameter must be one integer, not {value.dtype}")
    return int(value.reshape(())[()])


def _bad(intrinsic: Intrinsic, problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"intrinsic {intrinsic.uri!r}: {problem}")
