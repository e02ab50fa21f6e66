"""Queries whose groups are summed under masks: nobody sees those of a single device.

What devices would send in columns is put into a table of integers (``protocol.summed_groups``) that
is summed modulo a power of two, by whatever serves ``federated_secure_modular_sum``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fcp_core.aggregation.small_groups import SmallGroups, read_groups
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import data_type_pb2
from fcp_core.protocol.sql import SUMMED_GROUPS
from fcp_core.protocol.summed_groups import MODULUS, Layout
from fcp_core.tasks.sql_measures import DEVICES
from fcp_core.tasks.sql_parsing import ALL_ROWS

if TYPE_CHECKING:
    from fcp_core.tasks.sql_lowering import Part
    from fcp_core.tasks.sql_query import SqlQuery

_URI = "federated_secure_modular_sum"
#: What a device contributes to a sum is at most so large, so that those of a million devices fit.
#: Floats are rounded to so many parts of their bound.
_MOST = 1 << 40
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


def put_masks(query: SqlQuery, part: Part, minimum: int) -> None:
    """Have devices answer a part of a query with a table that is summed under masks.

    :raises UsageError: if that cannot be, with what to write instead.
    """
    if query.epsilon is not None:
        raise UsageError(
            "an epsilon does not go together with masks: the server would have to see the groups "
            "that it adds noise to. Ask with one of them."
        )
    if query.minimum_rows:
        raise UsageError("minimum_rows: under masks nobody sees how many rows a device has.")
    names = {intrinsic.outputs[0].name: intrinsic for intrinsic in part.nested}
    devices = [name for name in names if name == f"{part.label}{DEVICES.label}"]
    numbers: list[str] = []
    scales: dict[str, float] = {}
    for name, intrinsic in names.items():
        if name in devices:
            continue
        (given,), most = intrinsic.inputs, part.most[name]
        column = f"MIN(MAX({part.columns[given.name][0]}, {-most:.17g}), {most:.17g})"
        scales[name] = 0 if given.dtype is DataType.INT64 else _MOST / max(most, 1e-300)
        if most >= _MOST:
            raise UsageError(
                f"{name}: a device may add {most:g} to it, and a sum under masks has room for "
                f"less than {_MOST}; CLAMP it to less, or lower max_rows."
            )
        scaled = f"ROUND({column} * {scales[name]:.17g})" if scales[name] else column
        numbers.append(f"CAST({scaled} AS INTEGER)")
    salt = hashlib.sha256(part.sql.encode()).hexdigest()[:16]
    several = any(spec.name != f"{part.label}{ALL_ROWS.label}" for spec in part.keys)
    layout = _layout(query, several, len(numbers), salt)
    literals = [
        f"quote({part.columns[spec.name][0]})"
        if spec.dtype is DataType.DOUBLE
        else part.columns[spec.name][0]
        for spec in part.keys
    ]
    key = " || ',' || ".join(literals) or "''"
    values = "".join(f", {number} AS v{place}" for place, number in enumerate(numbers))
    arguments = "".join(f", v{place}" for place in range(len(numbers)))
    # The row without a key is there if no other one is.
    part.sql = (
        f"SELECT {SUMMED_GROUPS}({layout.capacity}, {layout.key_bytes}, '{salt}', k{arguments}) "
        f"AS c0 FROM (SELECT {key} AS k{values} FROM ({part.sql}) "
        f"UNION ALL SELECT NULL{', 0' * len(numbers)})"
    )
    name = f"{part.label}groups"
    part.columns = {name: ("c0", data_type_pb2.INT64)}
    part.masks = Masks(name, layout, tuple(part.keys), scales, devices, minimum)


def _layout(query: SqlQuery, several: bool, numbers: int, salt: str) -> Layout:
    if not several:
        return Layout(1, 1, numbers, salt)
    try:
        return Layout(query.capacity, query.key_bytes, numbers, salt)
    except ValueError as error:
        raise UsageError(
            f"the table under masks is too large: {error}. Lower capacity or key_bytes."
        ) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
