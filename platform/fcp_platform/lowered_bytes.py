"""A lowered computation as bytes, and back.

The bytes say what is in them and run nothing when they are read.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_federated.proto.v0 import computation_pb2
from tensorflow_federated.python.core.impl.types import type_serialization

from fcp_core.protocol.protos import plan_pb2
from fcp_platform.encoding import Encoding
from fcp_platform.graphs import LocalGraph, Port
from fcp_platform.lowering import Aggregations, Lowered
from fcp_platform.naming import Constant, Leaf
from fcp_platform.select import Select

#: To be changed with anything here, and with what lowering makes of a computation.
FORMAT = 4


class _Source(msgspec.Struct, array_like=True):
    """The name of a tensor, or a constant."""

    name: str
    constant: bytes | None = None


class _Leaf(msgspec.Struct, array_like=True):
    name: str
    type: bytes


class _Port(msgspec.Struct, array_like=True):
    leaf: _Leaf
    tensor_name: str


class _Graph(msgspec.Struct, array_like=True):
    graph: bytes
    inputs: list[_Port]
    outputs: list[_Port]
    token: str


class _Select(msgspec.Struct, array_like=True):
    target: _Leaf
    max_key: _Source
    value: list[_Source]
    function: _Graph


class _Encoding(msgspec.Struct, array_like=True):
    dtype: int
    wire: int
    suffix: list[int]
    ordered: bool


class _Aggregations(msgspec.Struct, array_like=True):
    configs: list[bytes]
    updates: dict[str, _Encoding]
    parameters: dict[str, _Encoding]
    constants: dict[str, bytes]
    outputs: dict[str, _Encoding]


class _Lowered(msgspec.Struct, array_like=True):
    prepare: _Graph
    broadcast: list[tuple[_Leaf, _Source]]
    selects: list[_Select]
    client: _Graph
    aggregations: _Aggregations
    result: _Graph
    plain_client: _Graph


def dumps(lowered: Lowered) -> bytes:
    """Return a lowered computation as bytes."""
    found = lowered.aggregations
    return msgspec.msgpack.encode(
        _Lowered(
            _graph(lowered.prepare),
            [(_leaf(leaf), _source(source)) for leaf, source in lowered.broadcast.items()],
            [
                _Select(
                    _leaf(select.target),
                    _source(select.max_key),
                    [_source(source) for source in select.value],
                    _graph(select.function),
                )
                for select in lowered.selects
            ],
            _graph(lowered.client),
            _Aggregations(
                [config.SerializeToString(deterministic=True) for config in found.configs],
                _encodings(found.updates),
                _encodings(found.parameters),
                {name: _array(value) for name, value in found.constants.items()},
                _encodings(found.outputs),
            ),
            _graph(lowered.result),
            _graph(lowered.plain_client),
        )
    )


def loads(data: bytes) -> Lowered:
    """Return the lowered computation that *data* hold.

    :raises ValueError: if they are not one.
    """
    try:
        return _lowered(msgspec.msgpack.decode(data, type=_Lowered))
    except (msgspec.DecodeError, DecodeError, TypeError) as error:
        raise ValueError(f"it is no lowered computation: {error}") from error


def _lowered(given: _Lowered) -> Lowered:
    found = given.aggregations
    return Lowered(
        _read_graph(given.prepare),
        {_read_leaf(leaf): _read_source(source) for leaf, source in given.broadcast},
        tuple(
            Select(
                _read_leaf(select.target),
                _read_source(select.max_key),
                tuple(_read_source(source) for source in select.value),
                _read_graph(select.function),
            )
            for select in given.selects
        ),
        _read_graph(given.client),
        Aggregations(
            [plan_pb2.ServerAggregationConfig.FromString(config) for config in found.configs],
            _read_encodings(found.updates),
            _read_encodings(found.parameters),
            {name: _read_array(value) for name, value in found.constants.items()},
            _read_encodings(found.outputs),
        ),
        _read_graph(given.result),
        _read_graph(given.plain_client),
    )


def _leaf(leaf: Leaf) -> _Leaf:
    proto = type_serialization.serialize_type(leaf.type)
    return _Leaf(leaf.name, proto.SerializeToString(deterministic=True))


def _read_leaf(leaf: _Leaf) -> Leaf:
    proto = computation_pb2.Type.FromString(leaf.type)
    return Leaf(leaf.name, type_serialization.deserialize_type(proto))


def _graph(graph: LocalGraph) -> _Graph:
    return _Graph(
        graph.graph_def.SerializeToString(deterministic=True),
        [_Port(_leaf(port.leaf), port.tensor_name) for port in graph.inputs],
        [_Port(_leaf(port.leaf), port.tensor_name) for port in graph.outputs],
        graph.token,
    )


def _read_graph(graph: _Graph) -> LocalGraph:
    return LocalGraph(
        tf.compat.v1.GraphDef.FromString(graph.graph),
        tuple(Port(_read_leaf(port.leaf), port.tensor_name) for port in graph.inputs),
        tuple(Port(_read_leaf(port.leaf), port.tensor_name) for port in graph.outputs),
        graph.token,
    )


def _source(source: str | Constant) -> _Source:
    if isinstance(source, Constant):
        return _Source("", _array(source.value))
    return _Source(source)


def _read_source(source: _Source) -> str | Constant:
    return source.name if source.constant is None else Constant(_read_array(source.constant))


def _array(value: np.ndarray[Any, Any]) -> bytes:
    return bytes(tf.make_tensor_proto(value).SerializeToString(deterministic=True))


def _read_array(data: bytes) -> np.ndarray[Any, Any]:
    holder = tf.compat.v1.AttrValue()  # a TensorProto has no public name of its own
    holder.tensor.ParseFromString(data)
    array: np.ndarray[Any, Any] = tf.make_ndarray(holder.tensor)
    return array


def _encodings(given: dict[str, Encoding]) -> dict[str, _Encoding]:
    return {
        name: _Encoding(
            form.dtype.as_datatype_enum,
            form.wire.as_datatype_enum,
            list(form.suffix),
            form.ordered,
        )
        for name, form in given.items()
    }


def _read_encodings(given: dict[str, _Encoding]) -> dict[str, Encoding]:
    return {
        name: Encoding(
            tf.as_dtype(form.dtype), tf.as_dtype(form.wire), tuple(form.suffix), form.ordered
        )
        for name, form in given.items()
    }
