"""The messages and the service of masked sums, and the arithmetic that both sides share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.declare import Rpc, ServiceFile
from fcp_core.protocol.status import Code, StatusError

#: Tensors by name; they are added and subtracted modulo 2**64.
Integers = Mapping[str, NDArray[np.int64]]

_PATH = "/v1/maskedsums/{aggregation_id}/clients"
_WHO = {"aggregation_id": "string", "client_token": "string"}
_COMMON = "google.internal.federatedcompute.v1"


def _waiting(method: str, token: str) -> Rpc:
    """Return a method whose answer may take a while."""
    path = f"{_PATH}/{{{token}}}:{method.lower()}"
    return Rpc(method, f"{method}Request", f"{method}Response", path, metadata="Waiting")


FILE = ServiceFile(
    "fcp_core/testing/masked_sum.proto",
    "fcp.testing.maskedsum.v1",
    {
        "JoinRequest": {"aggregation_id": "string", "authorization_token": "string"},
        "JoinResponse": {
            "forwarding": f"{_COMMON}.ForwardingInfo",
            "resource": f"{_COMMON}.ByteStreamResource",
            "client_token": "string",
            "index": "int32",
            # One for each of the cohort; the device's own is empty.
            "seeds": "repeated bytes",
        },
        "MissingRequest": _WHO,
        # Indices of those who joined and did not upload.
        "MissingResponse": {"missing": "repeated int32"},
        # The seeds shared with those, in the same order.
        "ConcludeRequest": {**_WHO, "seeds": "repeated bytes"},
        "ConcludeResponse": {},
        "AbortRequest": _WHO,
        "AbortResponse": {},
        "Waiting": {"polling_interval": "google.protobuf.Duration"},
    },
    "MaskedSums",
    [
        _waiting("Join", "authorization_token"),
        _waiting("Missing", "client_token"),
        _waiting("Conclude", "client_token"),
        Rpc("Abort", "AbortRequest", "AbortResponse", f"{_PATH}/{{client_token}}:abort"),
    ],
)


def read_integers(checkpoint: bytes | bytearray | memoryview) -> Integers:
    """Return the tensors of a checkpoint.

    :raises StatusError: INVALID_ARGUMENT unless all of them are int64.
    """
    tensors = dict(open_checkpoint(checkpoint))
    for name, tensor in tensors.items():
        if tensor.dtype != np.int64:
            raise StatusError(Code.INVALID_ARGUMENT, f"tensor {name} is {tensor.dtype}, not int64")
    return tensors


def add(left: Integers, right: Integers) -> Integers:
    """Return the sum of two vectors that have the same tensors."""
    # The function and not the operator, which warns of overflows of scalars.
    return {name: np.add(value, right[name]) for name, value in left.items()}


def add_mask(vector: Integers, seed: bytes, index: int, other: int) -> Integers:
    """Return a vector with the mask that the device *index* shares with *other*."""
    combine = np.add if index < other else np.subtract
    return {
        name: combine(value, _expand(seed + name.encode(), value.shape))
        for name, value in vector.items()
    }


def take_mask_off(vector: Integers, seed: bytes, index: int, other: int) -> Integers:
    """Return a vector without the mask that :func:`add_mask` adds."""
    return add_mask(vector, seed, other, index)


def _expand(seed: bytes, shape: Sequence[int]) -> NDArray[np.int64]:
    size = 8 * int(np.prod(shape, dtype=np.int64))
    stream = hashlib.shake_128(seed).digest(size)
    return np.frombuffer(stream, "<i8").astype(np.int64).reshape(shape)
