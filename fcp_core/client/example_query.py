"""Runs plans that are nothing but queries to the device's example store. No TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from fcp_core.client.executors import InsufficientDataError, PlanExecutor, PlanRun
from fcp_core.protocol.checkpoint import Format, Tensor, write_checkpoint
from fcp_core.protocol.protos import data_type_pb2
from fcp_core.protocol.status import Code, StatusError

_NUMERIC: dict[int, tuple[str, np.dtype[Any]]] = {
    data_type_pb2.INT32: ("int32_values", np.dtype(np.int32)),
    data_type_pb2.INT64: ("int64_values", np.dtype(np.int64)),
    data_type_pb2.BOOL: ("bool_values", np.dtype(np.bool_)),
    data_type_pb2.FLOAT: ("float_values", np.dtype(np.float32)),
    data_type_pb2.DOUBLE: ("double_values", np.dtype(np.float64)),
}
_STRINGS: dict[int, str] = {
    data_type_pb2.BYTES: "bytes_values",
    data_type_pb2.STRING: "string_values",
}


class ExampleQueryExecutor(PlanExecutor):
    """Turns each output vector of the plan's queries into one 1-D tensor.

    :param lightweight_wire_format: write the federated compute format where the plan leaves the
        choice to the client.
    """

    def __init__(self, *, lightweight_wire_format: bool = False) -> None:
        self._lightweight = lightweight_wire_format

    def run(self, run: PlanRun) -> bytes:
        """Answer the queries and write the checkpoint."""
        phase = run.plan.phase
        if phase.WhichOneof("io_router") != "federated_example_query":
            raise _bad("it has no federated_example_query router")
        spec = phase.example_query_spec
        if spec.HasField("privacy_id_config"):
            raise StatusError(Code.UNIMPLEMENTED, "example query plans by privacy id")
        tensors: dict[str, Tensor] = {}
        for query in spec.example_queries:
            run.interruption.check()
            for name, tensor in _answer(query, run).items():
                if name in tensors:
                    raise _bad(f"two queries write the tensor {name!r}")
                tensors[name] = tensor
        format = self._format(tensors, phase.federated_example_query.aggregations)
        return write_checkpoint(tensors, format)

    def _format(self, tensors: dict[str, Tensor], aggregations: Any) -> Format:
        federated_compute = self._lightweight
        # A router may write a tensor's name with the output's number.
        kinds = {
            name.removesuffix(":0"): aggregation.WhichOneof("protocol_config")
            for name, aggregation in aggregations.items()
        }
        for name in tensors:
            if name.removesuffix(":0") not in kinds:
                raise _bad(f"its router has no aggregation for the tensor {name!r}")
            kind = kinds[name.removesuffix(":0")]
            if kind == "federated_compute_checkpoint_aggregation":
                federated_compute = True
            elif kind != "tf_v1_checkpoint_aggregation":
                raise _bad(f"the tensor {name!r} cannot be contributed by {kind}")
        return "federated_compute" if federated_compute else "tf_v1"


def _answer(query: Any, run: PlanRun) -> dict[str, Tensor]:
    uri = query.example_selector.collection_uri
    if query.direct_output_tensor_name:
        # Such a query takes the examples as they are.
        examples = [
            bytes(example)
            for example in _interruptible(run.store.examples(query.example_selector), run)
        ]
        _require(len(examples), query.min_output_row_count, uri)
        return {query.direct_output_tensor_name: _strings(examples)}
    result = run.store.query(query)
    tensors = {
        name: _vector(result.vector_data.vectors, spec, uri)
        for name, spec in query.output_vector_specs.items()
    }
    lengths = {len(tensor) for tensor in tensors.values()}
    if len(lengths) > 1:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"the result of collection {uri!r} has vectors of different lengths: {sorted(lengths)}",
        )
    _require(lengths.pop() if lengths else 0, query.min_output_row_count, uri)
    return tensors


def _interruptible(examples: Any, run: PlanRun) -> Any:
    for example in examples:
        run.interruption.check()
        yield example


def _require(rows: int, minimum: int, uri: str) -> None:
    if rows < minimum:
        raise InsufficientDataError(
            f"collection {uri!r} gives {rows} rows; the plan wants at least {minimum}"
        )


def _vector(vectors: Any, spec: Any, uri: str) -> Tensor:
    name = spec.vector_name
    if name not in vectors:
        known = ", ".join(sorted(vectors)) or "none"
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"the result of collection {uri!r} has no vector {name!r}; it has {known}",
        )
    values = vectors[name]
    field = values.WhichOneof("values")
    numeric = _NUMERIC.get(spec.data_type)
    wanted = numeric[0] if numeric else _STRINGS.get(spec.data_type)
    if wanted is None:
        raise _bad(f"vector {name!r} has no known data type ({spec.data_type})")
    if field != wanted:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"vector {name!r} of collection {uri!r} holds {field}; the plan wants {wanted}",
        )
    items = getattr(values, field).value
    if numeric:
        return np.fromiter(items, numeric[1], len(items))
    return _strings([item.encode() if isinstance(item, str) else item for item in items])


def _strings(items: list[bytes]) -> Tensor:
    tensor = np.empty(len(items), dtype=object)
    tensor[:] = items
    return tensor


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"example query plan: {problem}")
