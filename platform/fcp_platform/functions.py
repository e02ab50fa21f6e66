"""The functions of ``federated_aggregate``, serialized so that an aggregator can run them.

They travel as one string tensor of three serialized graphs: accumulate, merge and report. A graph
has the placeholders ``input_0``, ``input_1``, ...: first the accumulator's leaves, then those
of the value; its results are ``output_0``, ...; all of them have dtypes of the aggregation core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from fcp_platform import encoding
from fcp_platform.graphs import LocalGraph, ancestors, local_graph, only
from fcp_platform.intrinsics import AGGREGATE_URI, AggregateFunctions


def serialize_functions(functions: AggregateFunctions, config: Any) -> np.ndarray[Any, Any]:
    """Return the functions as a string tensor.

    :param config: Grappler's settings.
    :raises ValueError: naming the function that is not made of TensorFlow alone.
    """
    tensor = np.empty(3, dtype=object)
    for index, (label, prefixes) in enumerate(
        (
            ("accumulate", ("accumulator", "value")),
            ("merge", ("accumulator", "accumulator")),
            ("report", "accumulator"),
        )
    ):
        try:
            graph = local_graph(getattr(functions, label), prefixes, "result", config)
        except Exception as error:
            raise ValueError(
                f"the {label} function of a federated_aggregate cannot be made one TensorFlow "
                f"graph: {error}"
            ) from error
        tensor[index] = _wire_graph(graph).SerializeToString()
    return tensor


def _wire_graph(function: LocalGraph) -> Any:
    """Return a graph whose inputs and outputs have dtypes of the aggregation core."""
    graph = tf.Graph()
    with graph.as_default():
        inputs = {}
        for index, port in enumerate(function.inputs):
            form = encoding.aggregated(port.leaf.name, AGGREGATE_URI, port.leaf.dtype)
            shape = port.leaf.type.shape
            placeholder = tf.compat.v1.placeholder(
                form.wire, None if shape is None else (*shape, *form.suffix), f"input_{index}"
            )
            inputs[port.tensor_name] = form.decode(placeholder)
        outputs = function.add_to_graph(inputs, "function")
        for index, (port, tensor) in enumerate(zip(function.outputs, outputs, strict=True)):
            form = encoding.aggregated(port.leaf.name, AGGREGATE_URI, port.leaf.dtype)
            tf.identity(form.encode(tensor), f"output_{index}")
    graph_def = graph.as_graph_def()
    kept = ancestors(graph_def, (f"output_{index}" for index in range(len(outputs))))
    kept.update(f"input_{index}" for index in range(len(inputs)))
    return only(graph_def, kept)
