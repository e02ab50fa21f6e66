"""What a task says of its privacy to the devices that run it.

It travels at the end of the plan, as a field that the protocol's ``ClientOnlyPlan`` does not have:
published clients skip it, as they skip every field that they do not know. It is JSON, so that a
ledger may state more than a device knows to ask for.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from fcp_core.protocol.protos.stated_plan_pb2 import StatedPlan

#: Of plans up to this size, in bytes, what was found is remembered, and the last two with it.
_KEPT = 8 << 20


@dataclass(frozen=True)
class Statement:
    """What a task says.

    :param epsilon: that its result costs the device at most, once; None: it says nothing of it.
    :param delta: the same.
    :param series: the name of the series of which the numbers are the whole cost so far; empty: the
        task stands for itself.
    :param said: all that it says.
    """

    epsilon: float | None
    delta: float
    series: str
    said: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All that it says as JSON, the same for the same words."""
        return msgspec.json.encode(self.said, order="sorted").decode() if self.said else ""

    @classmethod
    def of(cls, said: Any) -> Statement:
        """Return the statement that decoded JSON is."""
        said = said if isinstance(said, Mapping) else {}
        epsilon, delta = said.get("epsilon"), said.get("delta", 0.0)
        numbers = all(
            isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 0
            for number in (epsilon, delta)
        )
        return cls(
            float(epsilon) if numbers else None,
            float(delta) if numbers else 0.0,
            str(said.get("series") or ""),
            said,
        )

    @classmethod
    def read(cls, text: str | bytes) -> Statement:
        """Read JSON; what is none says nothing."""
        try:
            return cls.of(msgspec.json.decode(text) if text else {})
        except msgspec.DecodeError:
            return cls.of({})


def add_statement(plan: bytes, said: Mapping[str, Any]) -> bytes:
    """Return a serialized ``ClientOnlyPlan`` with a statement; without one if nothing is said."""
    if not said:
        return plan
    stated = StatedPlan(statement=msgspec.json.encode(said, order="sorted"))
    return plan + stated.SerializeToString()


def statement_of(plan: bytes) -> Statement:
    """Return the statement of a serialized ``ClientOnlyPlan``; an empty one if it has none."""
    return (_statement if len(plan) <= _KEPT else _statement.__wrapped__)(plan)


def digest_of(plan: bytes) -> str:
    """Return the SHA-256 of a serialized plan in hexadecimal."""
    return (_digest if len(plan) <= _KEPT else _digest.__wrapped__)(plan)


# A device runs the same plan round after round. Looked up, it is hashed by Python, which remembers
# the hash with the bytes.


@functools.lru_cache(maxsize=2)
def _statement(plan: bytes) -> Statement:
    try:
        return Statement.read(StatedPlan.FromString(plan).statement)
    except DecodeError:
        return Statement.of({})


@functools.lru_cache(maxsize=2)
def _digest(plan: bytes) -> str:
    return hashlib.sha256(plan).hexdigest()
