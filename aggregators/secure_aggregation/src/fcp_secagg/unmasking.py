"""The server's heavy work: adding masked vectors, putting keys together, expanding masks.

Each function is pure, from bytes to bytes, so that an engine may run it in a thread or on another
machine. The structs are what those bytes hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from fcp_secagg import masks
from fcp_secagg.packing import Vector, VectorSpec, unpack
from fcp_secagg.primitives import KEY_BYTES, KeyPair, point
from fcp_secagg.shamir import Reconstructions

#: How an engine finds the functions.
ADD = "fcp_secagg.unmasking:add_inputs"
KEYS = "fcp_secagg.unmasking:find_keys"
EXPAND = "fcp_secagg.unmasking:expand"

#: How many keys are expanded in one piece of work.
KEYS_AT_A_TIME = 128


class Inputs(msgspec.Struct, array_like=True):
    """Masked vectors to add.

    :param total: the sum so far, by name; empty: there is none.
    :param packed: of each client, the packed vectors in the order of the specifications.
    """

    specs: Sequence[VectorSpec]
    total: bytes
    packed: list[list[bytes]]


class Shares(msgspec.Struct, array_like=True):
    """What is known of a client's key.

    :param shares: by the index of whom they are from.
    """

    client: int
    shares: dict[int, bytes]


class Keys(msgspec.Struct, array_like=True):
    """What keys are put together from.

    :param included: of each client whose input is in the sum, the shares of its own mask's key.
    :param gone: of each that shared its keys and no input, the shares of its private key.
    :param pairs: (who is gone, the other's public key, the sign with which its mask is added).
    :param publics: the public keys of those who are gone.
    """

    threshold: int
    included: list[Shares]
    gone: list[Shares]
    pairs: list[tuple[int, bytes, int]]
    publics: dict[int, bytes]


class Expansion(msgspec.Struct, array_like=True):
    """Keys to expand: 32 bytes each, with the sign with which its mask is added."""

    specs: Sequence[VectorSpec]
    session: bytes
    keys: list[tuple[bytes, int]]


def encode(value: msgspec.Struct) -> bytes:
    """Return a struct's bytes."""
    return msgspec.msgpack.encode(value)


def add_inputs(arguments: bytes) -> bytes:
    """Add the vectors of :class:`Inputs`; return the new total."""
    given = msgspec.msgpack.decode(arguments, type=Inputs)
    specs = given.specs
    totals = read_vectors(given.total, specs) if given.total else {}
    for position, spec in enumerate(specs):
        total = totals.get(spec.name)
        for packed in given.packed:
            vector = unpack(packed[position], spec)
            total = vector if total is None else masks.add(total, vector, spec)
        assert total is not None  # there is a total, or something to add
        totals[spec.name] = total
    return write_vectors(totals, specs)


def find_keys(arguments: bytes) -> bytes:
    """Put the keys of :class:`Keys` together; return those whose masks are to be added, or why not.

    There may be too few shares of one of them, or wrong ones: of private keys that is noticed.
    """
    given = msgspec.msgpack.decode(arguments, type=Keys)
    try:
        return msgspec.msgpack.encode(_found(given))
    except ValueError as error:
        return msgspec.msgpack.encode(str(error))


def _found(given: Keys) -> list[tuple[bytes, int]]:
    known = Reconstructions(given.threshold)
    found = [(known.secret(item.shares, KEY_BYTES), -1) for item in given.included]
    gone = {item.client: KeyPair(known.secret(item.shares, KEY_BYTES)) for item in given.gone}
    for client, pair in gone.items():
        if pair.public != given.publics[client]:
            raise ValueError("a device told a wrong share of a key")
    points = {public: point(public) for _, public, _ in given.pairs}
    for client, public, sign in given.pairs:
        found.append((gone[client].agree(points[public]), sign))
    for pair in gone.values():
        pair.forget()
    return found


def read_keys(data: bytes) -> list[tuple[bytes, int]]:
    """Return the keys that :func:`find_keys` found, with their signs.

    :raises ValueError: if it could not.
    """
    found = msgspec.msgpack.decode(data, type=list[tuple[bytes, int]] | str)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def expand(arguments: bytes) -> bytes:
    """Return the sums of the masks of :class:`Expansion`."""
    given = msgspec.msgpack.decode(arguments, type=Expansion)
    found = masks.masks(given.specs, given.session, given.keys)
    return write_vectors(found, given.specs)


def write_vectors(vectors: Mapping[str, Vector], specs: Sequence[VectorSpec]) -> bytes:
    """Return vectors as bytes, in the order of the specifications."""
    return b"".join(vectors[spec.name].astype("<u8", copy=False).tobytes() for spec in specs)


def read_vectors(data: bytes, specs: Sequence[VectorSpec]) -> dict[str, Vector]:
    """Return what :func:`write_vectors` wrote."""
    values: Any = np.frombuffer(data, "<u8")
    found, start = {}, 0
    for spec in specs:
        found[spec.name] = values[start : start + spec.length].astype(np.uint64)
        start += spec.length
    return found


def add_all(parts: Sequence[bytes], specs: Sequence[VectorSpec]) -> dict[str, Vector]:
    """Return the sum of what several pieces of work returned."""
    total = read_vectors(parts[0], specs)
    for part in parts[1:]:
        vectors = read_vectors(part, specs)
        total = {spec.name: masks.add(total[spec.name], vectors[spec.name], spec) for spec in specs}
    return total
