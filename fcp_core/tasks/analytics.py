"""A task of analytics: devices answer example queries, the server adds up. No TensorFlow anywhere.

Each device answers the queries with vectors of one length, a row for each thing that it counts. The
server adds the summed columns up, over all rows or for each distinct combination of keys; or it
adds vectors of a fixed length up, element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcp_core.aggregation.configuration import GROUP_BY_URI, configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol import wkt
from fcp_core.protocol.protos import data_type_pb2, plan_pb2
from fcp_core.rounds.specification import TaskSpec
from fcp_core.tasks.schedule import Schedule

#: What a vector may hold: on the device, and in the aggregation.
DTYPES: Mapping[str, tuple[data_type_pb2.DataType, DataType]] = {
    "int32": (data_type_pb2.INT32, DataType.INT32),
    "int64": (data_type_pb2.INT64, DataType.INT64),
    "float32": (data_type_pb2.FLOAT, DataType.FLOAT),
    "float64": (data_type_pb2.DOUBLE, DataType.DOUBLE),
    "string": (data_type_pb2.STRING, DataType.STRING),
    "bytes": (data_type_pb2.BYTES, DataType.STRING),
}
_INTEGERS = ("int32", "int64")
#: Sums get room to grow.
_WIDER = {DataType.INT32: DataType.INT64, DataType.FLOAT: DataType.DOUBLE}
_SUM_URI = "GoogleSQL:sum"
_VECTOR_SUM_URI = "federated_sum"
_SECURE_SUM_URI = "federated_secure_sum"


@dataclass(frozen=True)
class Vector:
    """One output vector of a query.

    :param dtype: a key of :data:`DTYPES`.
    :param length: its fixed length, if it is summed element by element; None: any.
    :param largest: then: that it is summed under masks, and that none of its elements is above
        this, or below 0; None: it is summed in the clear.
    """

    dtype: str
    length: int | None = None
    largest: int | None = None


@dataclass(frozen=True)
class Query:
    """One question to a device's example store.

    :param vectors: what it gives, by name; a device's vectors without a length are equally long.
    :param criteria: the type URL and the value of the selector's ``criteria``; None: there are
        none. What they mean is between the task and the application on the device.
    :param minimum_rows: a device with fewer rows does not contribute.
    """

    collection_uri: str
    vectors: Mapping[str, Vector]
    criteria: tuple[str, bytes] | None = None
    minimum_rows: int = 0


@dataclass(frozen=True)
class Aggregate:
    """A column of the result that an aggregator with a URI of its own computes.

    :param uri: the URI that it serves.
    :param vectors: what it is given, in its order.
    :param result: what it gives; None: of the dtype and the length of its first vector.
    """

    uri: str
    vectors: tuple[str, ...]
    result: Vector | None = None


class Analytics:
    """A task of analytics.

    :param goal_count: how many devices' contributions complete it.
    :param group_by: the vectors whose values are the keys, in the result's order.
    :param sums: columns of the result, and the vector that each is the sum of.
    :param counts: the same for counts: sums of an integer vector in which the device counts, with
        a 1 in each row to count rows.
    :param aggregates: columns that aggregators with URIs of their own compute.
    :param minimum_group_size: only groups of at least so many devices are in the result.
    :param eligibility: the options of eligibility policies, by the policies' names, that come on
        top of those that the server's configuration chooses.
    :param schedule: when it is submitted again; None: it is not.
    :param more: further fields of the :class:`TaskSpec`, such as ``deadline``.
    :raises TypeError: if there is no such field.
    """

    def __init__(
        self,
        population: str,
        name: str,
        goal_count: int,
        queries: tuple[Query, ...],
        *,
        group_by: tuple[str, ...] = (),
        sums: Mapping[str, str] | None = None,
        counts: Mapping[str, str] | None = None,
        aggregates: Mapping[str, Aggregate] | None = None,
        minimum_group_size: int | None = None,
        eligibility: Mapping[str, Mapping[str, Any]] | None = None,
        schedule: Schedule | None = None,
        **more: Any,
    ) -> None:
        #: The task, but for what the queries and the columns lead to: its plan and its aggregation.
        self.task = TaskSpec(
            population,
            name,
            plan=b"",
            aggregation=b"",
            goal_count=goal_count,
            # This format keeps the order of the columns.
            result_format="federated_compute",
            **with_policies(eligibility or {}, more),
        )
        self.queries = queries
        self.schedule = schedule
        self.group_by = group_by
        self.sums = sums or {}
        self.counts = counts or {}
        self.aggregates = aggregates or {}
        self.minimum_group_size = minimum_group_size

    def to_spec(self) -> TaskSpec:
        """Return the task's specification: the plan for devices, the aggregation for the server.

        :raises UsageError: if the parts do not fit together, naming what does not.
        :raises StatusError: INVALID_ARGUMENT for a name, a count or a time that no task may have.
        """
        vectors = self._vectors()
        intrinsics = self._intrinsics(vectors)
        used = {*self.group_by, *self.sums.values(), *self.counts.values()}
        used.update(name for each in self.aggregates.values() for name in each.vectors)
        for name in vectors:
            if name not in used:
                raise UsageError(
                    f"vector {name!r} is neither a key nor summed: devices would send it for "
                    "nothing."
                )
        spec = self.task.replace(
            plan=self._plan().SerializeToString(deterministic=True),
            aggregation=configuration_to_proto(intrinsics).SerializeToString(deterministic=True),
        )
        spec.check()
        return spec

    def _vectors(self) -> dict[str, Vector]:
        if not self.queries:
            raise UsageError("the task has no query.")
        vectors: dict[str, Vector] = {}
        for query in self.queries:
            if not query.vectors:
                raise UsageError(f"the query of {query.collection_uri!r} has no vectors.")
            for name, vector in query.vectors.items():
                _check_name("a vector", name)
                if name in vectors:
                    raise UsageError(f"two queries have a vector {name!r}.")
                if vector.dtype not in DTYPES:
                    raise UsageError(
                        f"vector {name!r}: {vector.dtype!r} is not one of {', '.join(DTYPES)}."
                    )
                if vector.length is not None and vector.length < 1:
                    raise UsageError(f"vector {name!r}: its length must be at least 1.")
                _check_largest(name, vector)
                vectors[name] = vector
        return vectors

    def _plan(self) -> plan_pb2.ClientOnlyPlan:
        plan = plan_pb2.ClientOnlyPlan()
        router = plan.phase.federated_example_query
        for query in self.queries:
            message = plan.phase.example_query_spec.example_queries.add(
                min_output_row_count=query.minimum_rows
            )
            message.example_selector.collection_uri = query.collection_uri
            if query.criteria is not None:
                type_url, value = query.criteria
                message.example_selector.criteria.CopyFrom(wkt.Any(type_url=type_url, value=value))
            for name, vector in query.vectors.items():
                output = message.output_vector_specs[name]
                output.vector_name = name
                output.data_type = DTYPES[vector.dtype][0]
                # Published clients send the same as for the other kind if their flag for it is on;
                # if it is off, they say at once that they cannot, and are not silent.
                router.aggregations[name].tf_v1_checkpoint_aggregation.SetInParent()
        return plan

    def _intrinsics(self, vectors: Mapping[str, Vector]) -> list[Intrinsic]:
        def vector(name: str, role: str) -> Vector:
            if name not in vectors:
                known = ", ".join(sorted(vectors))
                raise UsageError(f"{role} {name!r} is no vector of a query; there is {known}.")
            return vectors[name]

        sums: list[tuple[str, str, Vector]] = []
        for name, source in [*self.sums.items(), *self.counts.items()]:
            role = f"{'sum' if name in self.sums else 'count'} {name!r}: the vector"
            summed = vector(source, role)
            if summed.dtype in ("string", "bytes"):
                raise UsageError(f"{role} {source!r} holds {summed.dtype}, which cannot be summed.")
            if name not in self.sums and summed.dtype not in _INTEGERS:
                raise UsageError(f"{role} {source!r} must hold integers, not {summed.dtype}.")
            sums.append((name, source, summed))
        own = [self._own(name, each, vector) for name, each in self.aggregates.items()]
        outputs = [*self.group_by, *self.sums, *self.counts, *self.aggregates]
        twice = sorted({name for name in outputs if outputs.count(name) > 1})
        for name in outputs:
            _check_name("a column of the result", name)
        if twice:
            raise UsageError(f"two columns of the result are called {twice[0]!r}.")
        if not outputs:
            raise UsageError("the task has neither keys nor sums: nothing would come of it.")
        keys = [(name, vector(name, "the key")) for name in self.group_by]
        if not keys and not sums:
            return own
        fixed = [name for name, _, summed in sums if summed.length is not None]
        fixed += [name for name, key in keys if key.length is not None]
        if not fixed:
            return [self._group_by(keys, sums), *own]
        if keys or len(fixed) < len(sums):
            raise UsageError(
                f"{fixed[0]!r} is a vector of fixed length, which is summed element by element: "
                "that does not go together with keys, or with sums over rows; use two tasks."
            )
        if self.minimum_group_size is not None:
            raise UsageError("a minimum group size needs keys to group by.")
        return [_vector_sum(name, source, summed) for name, source, summed in sums] + own

    @staticmethod
    def _own(name: str, own: Aggregate, vector: Callable[[str, str], Vector]) -> Intrinsic:
        if not own.vectors:
            raise UsageError(f"aggregate {name!r} has no vectors.")
        given = [
            (source, vector(source, f"aggregate {name!r}: the vector")) for source in own.vectors
        ]
        for source, each in given:
            if each.largest is not None:
                raise UsageError(
                    f"aggregate {name!r}: vector {source!r} has a 'largest', which only sums have."
                )
        result = own.result or given[0][1]
        if result.dtype not in DTYPES:
            raise UsageError(
                f"aggregate {name!r}: {result.dtype!r} is not one of {', '.join(DTYPES)}."
            )
        inputs = tuple(_spec(source, each) for source, each in given)
        return Intrinsic(own.uri, inputs, (_spec(name, result),))

    def _group_by(
        self, keys: list[tuple[str, Vector]], sums: list[tuple[str, str, Vector]]
    ) -> Intrinsic:
        parameters: dict[str, int] = {}
        if self.minimum_group_size is not None:
            if not keys:
                raise UsageError("a minimum group size needs keys to group by.")
            parameters["min_contributors_to_group"] = self.minimum_group_size
        used = {name for name, _ in keys} | {source for _, source, _ in sums}
        # The columns are of one length, so the query that wants the most rows decides.
        rows = max(query.minimum_rows for query in self.queries if used & set(query.vectors))
        if rows > 0:
            parameters["minimum_rows"] = rows
        columns = tuple(TensorSpec(name, DTYPES[key.dtype][1], (-1,)) for name, key in keys)
        return Intrinsic(
            GROUP_BY_URI,
            columns,
            columns,
            tuple(Parameter(name, np.array(value, np.int64)) for name, value in parameters.items()),
            tuple(
                _column_sum(name, source, DTYPES[summed.dtype][1]) for name, source, summed in sums
            ),
        )


def with_policies(
    eligibility: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return fields of a :class:`TaskSpec` with eligibility policies, and their options, in them.

    :param eligibility: the options of each policy, by its name.
    """
    options = {name: given for name, given in eligibility.items() if given}
    more = {"eligibility": tuple(eligibility), "options": {**fields.get("options", {}), **options}}
    return {**fields, **more}


def _check_largest(name: str, vector: Vector) -> None:
    """Refuse a bound that no sum under masks can have."""
    if vector.largest is None:
        return
    if vector.length is None or vector.dtype not in _INTEGERS:
        raise UsageError(
            f"vector {name!r}: 'largest' has it summed under masks, element by element: give it a "
            f"length, and one of {', '.join(_INTEGERS)} as dtype."
        )
    most = int(np.iinfo(vector.dtype).max)
    if not 0 <= vector.largest <= most:
        raise UsageError(f"vector {name!r}: its largest must be from 0 to {most}.")


def _vector_sum(name: str, source: str, summed: Vector) -> Intrinsic:
    """Return the sum of a vector of fixed length, element by element."""
    # Such a sum adds what it gets, in the dtype that it gets it in.
    dtype, shape = DTYPES[summed.dtype][1], (summed.length or 0,)
    inputs, outputs = (TensorSpec(source, dtype, shape),), (TensorSpec(name, dtype, shape),)
    if summed.largest is None:
        return Intrinsic(_VECTOR_SUM_URI, inputs, outputs)
    bound = Parameter("", np.array(summed.largest, np.int64))
    return Intrinsic(_SECURE_SUM_URI, inputs, outputs, (bound,))


def _check_name(what: str, name: str) -> None:
    """Refuse the name of a tensor that no checkpoint can have, or that nobody could type."""
    if not name:
        raise UsageError(f"{what} has an empty name.")
    # Among them are lone surrogates, which are no UTF-8.
    if not name.isprintable():
        raise UsageError(f"{what} is called {name!r}; a name has no such characters.")


def _spec(name: str, vector: Vector) -> TensorSpec:
    return TensorSpec(name, DTYPES[vector.dtype][1], (vector.length or -1,))


def _column_sum(name: str, source: str, dtype: DataType) -> Intrinsic:
    return Intrinsic(
        _SUM_URI,
        (TensorSpec(source, dtype, (-1,)),),
        (TensorSpec(name, _WIDER.get(dtype, dtype), (-1,)),),
    )
