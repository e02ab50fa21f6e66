"""A part of an SQL query: what devices answer, and the group-by of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fcp_core.aggregation.configuration import DP_DISTINCT_URI, DP_GROUP_BY_URI, GROUP_BY_URI
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import data_type_pb2
from fcp_core.tasks.sql_masks import Masks
from fcp_core.tasks.sql_question import Question

#: The shape of a tensor that is a column.
COLUMN = (-1,)
_TYPES = {
    DataType.INT64: data_type_pb2.INT64,
    DataType.DOUBLE: data_type_pb2.DOUBLE,
    DataType.STRING: data_type_pb2.STRING,
}


@dataclass
class Part:
    """A query of devices, and the group-by of what they answer.

    :ivar label: what the names of its tensors begin with, so that they are those of no other part.
    :ivar selected: what devices select, each ``AS`` a name.
    :ivar columns: for each tensor of a contribution, the column of the answer and its type.
    :ivar keys: the tensors of the keys, in the order of the query's keys.
    :ivar measures: the tensors of the measures in the result, each with its place among all; -1 is
        none that is asked for.
    """

    label: str = ""
    sql: str = ""
    selected: list[str] = field(default_factory=list)
    columns: dict[str, tuple[str, int]] = field(default_factory=dict)
    keys: list[TensorSpec] = field(default_factory=list)
    nested: list[Intrinsic] = field(default_factory=list)
    measures: dict[str, int] = field(default_factory=dict)
    #: Under noise or masks: the relative error of the buckets that the last key is, and the
    #: quantiles that are read from them, each with its place among the measures.
    buckets: float | None = None
    quantiles: dict[int, float] = field(default_factory=dict)
    #: Under noise: whether it counts distinct values, by their codes.
    codes: bool = False
    #: Under masks: what a device contributes to each measure at most, and how the sums are read.
    most: dict[str, float] = field(default_factory=dict)
    masks: Masks | None = None

    def column(self, name: str, sql: str, dtype: DataType) -> TensorSpec:
        """Have devices select something, under a name."""
        tensor = f"{self.label}{name}"
        if tensor not in self.columns:
            place = f"c{len(self.selected)}"
            self.selected.append(f"{sql} AS {place}")
            self.columns[tensor] = (place, _TYPES[dtype])
        return TensorSpec(tensor, dtype, COLUMN)

    def nest(
        self,
        place: int,
        uri: str,
        inputs: Sequence[TensorSpec],
        output: TensorSpec,
        parameters: Sequence[tuple[str, float]] = (),
    ) -> None:
        """Have the server aggregate columns."""
        given = [Parameter(name, np.array(value)) for name, value in parameters]
        self.nested.append(Intrinsic(uri, tuple(inputs), (output,), tuple(given)))
        self.measures[output.name] = place

    def group_by(self, query: Question, minimum: int | None, parts: int) -> Intrinsic:
        """Return the group-by.

        :param parts: how many share the budget.
        """
        if self.masks is not None:
            return self.masks.intrinsic
        parameters: list[Parameter] = []
        keys = tuple(self.keys)
        if self.codes and query.epsilon is not None:
            return self._distinct(query, minimum, parts)
        if query.epsilon is not None:
            groups = query.max_groups * (1 if self.buckets is None else query.rows_bound)
            parameters = [
                Parameter("epsilon", np.array(query.epsilon / parts)),
                Parameter("delta", np.array(query.delta / parts)),
                Parameter("max_groups_contributed", np.array(groups, np.int64)),
                *self._domain(query.domain),
            ]
        if minimum is not None and keys:
            value = np.array(minimum, np.int64)
            parameters.append(Parameter("min_contributors_to_group", value))
        if query.minimum_rows > 0 and query.epsilon is None:
            value = np.array(query.minimum_rows, np.int64)
            parameters.append(Parameter("minimum_rows", value))
        uri = GROUP_BY_URI if query.epsilon is None else DP_GROUP_BY_URI
        return Intrinsic(uri, keys, keys, tuple(parameters), tuple(self.nested))

    def _distinct(self, query: Question, minimum: int | None, parts: int) -> Intrinsic:
        """Return the count of distinct values under noise, of all or in each group."""
        (nested,) = self.nested
        parameters = {
            "epsilon": np.array((query.epsilon or 0.0) / parts),
            "max_values": np.array(query.rows_bound, np.int64),
        }
        if query.domain:
            raise UsageError("a domain does not go together with APPROX_DISTINCT; ask twice.")
        if self.keys:
            parameters["delta"] = np.array(query.delta / parts)
            parameters["max_groups_contributed"] = np.array(query.max_groups, np.int64)
        if self.keys and minimum is not None:
            parameters["min_contributors_to_group"] = np.array(minimum, np.int64)
        return Intrinsic(
            DP_DISTINCT_URI,
            (*self.keys, *nested.inputs),
            (*self.keys, *nested.outputs),
            tuple(Parameter(name, value) for name, value in parameters.items()),
        )

    def _domain(self, domain: Mapping[str, Sequence[object]]) -> list[Parameter]:
        """Return the values that the keys have, if they are given."""
        if not domain:
            return []
        names = [spec.name.removeprefix(self.label) for spec in self.keys]
        if self.buckets is not None:
            raise UsageError("a domain does not go together with APPROX_QUANTILE; ask twice.")
        if set(names) != set(domain):
            raise UsageError(
                f"the domain names {', '.join(domain)}; it must name all that the query groups by: "
                f"{', '.join(names) or 'nothing'}."
            )
        values = [_strings(map(literal, domain[name])) for name in names]
        return [
            Parameter("key_names", _strings(names)),
            *(Parameter(name, each) for name, each in zip(names, values, strict=True)),
        ]


def literal(value: object) -> str:
    """Return a value as an SQL literal, as devices do."""
    if value is None:
        return "NULL"
    if isinstance(value, str):
        if "\0" in value:
            return f"CAST(X'{value.encode().hex().upper()}' AS TEXT)"
        return "'" + value.replace("'", "''") + "'"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _strings(texts: Iterable[str]) -> Tensor:
    items = [text.encode() for text in texts]
    tensor = np.empty(len(items), object)
    tensor[:] = items
    return tensor
