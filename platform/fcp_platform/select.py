"""``federated_select``: devices download the slices of their keys, and no others.

The intrinsic is split in three. The server computes a slice, a small checkpoint, for every key from
0 to the greatest. What is broadcast is the name under which a round serves them. On the device a
dataset of files, one for each key that the client asks for, is read as a sequence of values.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_platform import encoding, naming
from fcp_platform.graphs import LocalGraph, local_graph
from fcp_platform.naming import Constant, Leaf

logger = logging.getLogger(__name__)

#: The prefixes of the names of the select function's parameters and result.
PARAMETERS = ("value", "key")
SLICE = "slice"

#: Marks the op that stands for the dataset of slices until the plan is built.
_MARK = b"fcp_slices"


@dataclass(frozen=True)
class Select:
    """One ``federated_select`` of a lowered computation.

    :param target: the ``client/...`` tensor that carries the name of the slices.
    :param max_key: where the greatest key comes from.
    :param value: where the leaves of the server's value come from, in order.
    :param function: (value, key) to a slice.
    """

    target: Leaf
    max_key: str | Constant
    value: tuple[str | Constant, ...]
    function: LocalGraph

    @property
    def served_at_id(self) -> str:
        """The name of the slices."""
        return self.target.name.replace("/", "_")

    def slices(self, prepared: Mapping[str, np.ndarray[Any, Any]]) -> dict[int, bytes]:
        """Compute the slices of all keys.

        The greatest key is a bound: TFF runs the function for the keys that devices ask for, and no
        others. So a key for which it fails is one that is not served.

        :param prepared: what the server prepared, by name.
        :raises tensorflow.errors.OpError: if the function fails for every key.
        """
        sources = [_resolve(source, prepared) for source in self.value]
        names = [port.leaf.name for port in self.function.inputs]
        end = int(_resolve(self.max_key, prepared)) + 1
        forms = {
            port.leaf.name: encoding.stored(port.leaf.name, port.leaf.dtype)
            for port in self.function.outputs
        }
        found: dict[int, bytes] = {}
        failed, first = 0, None
        while (start := len(found) + failed) < end:
            keys = range(start, end)
            runs = self.function.run_each(
                dict(zip(names, [*sources, np.int32(key)], strict=True)) for key in keys
            )
            try:
                for key, values in zip(keys, runs, strict=True):
                    arrays = {
                        name: forms[name].encode_array(value) for name, value in values.items()
                    }
                    found[key] = write_checkpoint(arrays, "tf_v1")
            except tf.errors.OpError as error:
                failed, first = failed + 1, first or error
        if first is not None:
            if not found:
                raise first
            logger.warning(
                "the select function of a federated_select fails for %d of %d keys, which are not "
                "served: %s",
                *(failed, end, first.message.splitlines()[0]),
            )
        return found


def fetching(keys_type: Any, slice_type: Any) -> Any:
    """Return the computation (keys, name of the slices) to the sequence of slices.

    It holds a marked stand-in for the ops that only devices have; see :func:`put_device_ops`.

    :raises TypeError: for a slice that cannot travel, naming its tensor.
    """
    leaves = naming.leaves(slice_type, SLICE)
    for leaf in leaves:
        if leaf.is_sequence:
            raise TypeError(f"federated_select: the select function gives a sequence, {leaf.type}")
    forms = [encoding.stored(leaf.name, leaf.dtype) for leaf in leaves]

    def read(path: Any) -> Any:
        tensors = tf.raw_ops.RestoreV2(
            prefix=path,
            tensor_names=[leaf.name for leaf in leaves],
            shape_and_slices=[""] * len(leaves),
            dtypes=[form.wire for form in forms],
        )
        values = []
        for leaf, form, tensor in zip(leaves, forms, tensors, strict=True):
            value = form.decode(tensor)
            value.set_shape(leaf.type.shape)
            values.append(value)
        return _pack(slice_type, iter(values))

    def fetch(keys: Any, served_at_id: Any) -> Any:
        variant = tf.raw_ops.TensorDataset(
            components=[served_at_id, keys],
            output_shapes=[[], keys_type.shape],
            metadata=_MARK,
        )
        files = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        return files.map(read)

    return tff.tensorflow.computation(fetch, (keys_type, np.str_)).to_building_block()


def choosing(keys_type: Any, sent_type: Any, function: Any) -> Any:
    """Return the computation (keys, what was sent) to the sequence of slices, made on the device.

    :param sent_type: of the server's ``value`` and its ``max_key``.
    :param function: (value, key) to a slice, as a building block.
    :raises ValueError: if the function is not made of TensorFlow alone.
    """
    try:
        graph = local_graph(function, PARAMETERS, SLICE, tf.compat.v1.ConfigProto())
    except Exception as error:
        raise ValueError(
            "the select function of a federated_secure_select cannot be made one TensorFlow graph"
        ) from error
    slice_type = function.type_signature.result

    def choose(keys: Any, sent: Any) -> Any:
        given = tff.structure.from_container(sent, recursive=True)
        leaves = tff.structure.flatten(given["value"])

        def one(key: Any) -> Any:
            in_range = tf.debugging.assert_equal(
                (key >= 0) & (key <= given["max_key"]), True, "a key to select is out of range"
            )
            with tf.control_dependencies([in_range]):
                # The leaves are tensors of the graph around this function's.
                values = [tf.identity(value) for value in (*leaves, key)]
            names = [port.tensor_name for port in graph.inputs]
            outputs = graph.add_to_graph(dict(zip(names, values, strict=True)), "select")
            return _pack(slice_type, iter(outputs))

        return tf.data.Dataset.from_tensor_slices(keys).map(one)

    return tff.tensorflow.computation(choose, (keys_type, sent_type)).to_building_block()


def put_device_ops(graph_def: Any, token: str) -> None:
    """Put the ops that only devices have in place of their stand-ins.

    :param token: the name of the data token's placeholder.
    """
    for node in list(graph_def.node):
        if node.op != "TensorDataset" or node.attr["metadata"].s != _MARK:
            continue
        data = [name for name in node.input if not name.startswith("^")]
        selector = graph_def.node.add(
            name=f"{node.name}/selector", op="MakeSlicesSelectorExampleSelector"
        )
        selector.input.extend(data)
        name = node.name
        node.Clear()
        node.name = name
        node.op = "ExternalDataset"
        node.input.extend([token, selector.name])


def _resolve(source: str | Constant, prepared: Mapping[str, Any]) -> Any:
    return source.value if isinstance(source, Constant) else prepared[source]


def _pack(type_spec: Any, values: Iterable[Any]) -> Any:
    """Return a dataset element of a type, from its leaves in order."""
    values = iter(values)
    if not isinstance(type_spec, tff.StructType):
        return next(values)
    members = naming.member_types(type_spec)
    packed = [(name, _pack(element, values)) for name, element in members]
    names = [name for name, _ in packed if name is not None]
    if not names:
        return tuple(value for _, value in packed)
    if len(names) != len(packed):
        raise TypeError(
            f"federated_select: a slice of type {type_spec} has elements with and without names"
        )
    return collections.OrderedDict(packed)
