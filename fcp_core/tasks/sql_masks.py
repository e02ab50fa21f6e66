"""Queries whose groups are summed under masks: nobody sees those of a single device.

What devices would send in columns is put into a table of integers (``protocol.summed_groups``) that
is summed modulo a power of two, by whatever serves ``federated_secure_modular_sum``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcp_core.aggregation.small_groups import SmallGroups, read_groups
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.summed_groups import MODULUS, Layout

_URI = "federated_secure_modular_sum"
#: What a device contributes to a sum is at most so large, so that those of a million devices fit.
#: Floats are rounded to so many parts of their bound.
LARGEST = 1 << 40
#: One key of several, which are literals with commas between them.
_KEY = re.compile(r"(?:CAST\()?X?'(?:[^']|'')*'(?: AS TEXT\))?|[^,]+", re.DOTALL)


@dataclass(frozen=True)
class Masks:
    """How the table of a part's groups is read.

    :param name: of its tensor.
    :param keys: the tensors of the keys.
    :param scales: for each number of a group its tensor, and how many units one is; 0: it is an
        integer.
    :param devices: the tensors that say how many devices a group has.
    :param minimum: groups of fewer devices are left out, by the server before there is a result.
    """

    name: str
    layout: Layout
    keys: Sequence[TensorSpec]
    scales: Mapping[str, float]
    devices: Sequence[str]
    minimum: int

    @property
    def intrinsic(self) -> Intrinsic:
        """The sum."""
        spec = TensorSpec(self.name, DataType.INT64, (self.layout.size,))
        parameters: tuple[Parameter, ...] = (Parameter("", np.array(MODULUS, np.int64)),)
        if self.minimum > 1:
            parameters = SmallGroups(self.layout, self.minimum).parameters()
        return Intrinsic(_URI, (spec,), (spec,), parameters)

    def columns(self, sums: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns that a group-by of the same would have given.

        :raises StatusError: FAILED_PRECONDITION if there are more groups than it has room for.
        """
        groups = read_groups(self.layout, np.array(sums, np.int64))
        # A protocol of a plugin may not have left them out.
        groups = [group for group in groups if group.devices >= self.minimum]
        columns: dict[str, list[Any]] = {
            name: [
                group.numbers[place] / scale if scale else group.numbers[place] for group in groups
            ]
            for place, (name, scale) in enumerate(self.scales.items())
        }
        columns |= {name: [group.devices for group in groups] for name in self.devices}
        rows = [self._key(group.key) for group in groups]
        for place, spec in enumerate(self.keys):
            columns[spec.name] = [row[place] for row in rows]
        return columns

    def _key(self, key: bytes) -> list[Any]:
        """Return the keys of a group; what is none stands for each of them."""
        text = key.decode("utf-8", "backslashreplace")
        found = _KEY.findall(text)
        if len(found) != len(self.keys) or ",".join(found) != text:
            found = [text] * len(self.keys)
        return [
            _number(one) if spec.dtype is DataType.DOUBLE else one.encode()
            for one, spec in zip(found, self.keys, strict=True)
        ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
