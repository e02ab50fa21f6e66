"""Eligibility tasks from Python functions: the plan that weighs a population's tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_platform.data_source import NestedExampleSelector, elements_of, selectors_in_order
from fcp_platform.graphs import ancestors, only
from fcp_platform.plans import TOKEN, add_datasets, string_spec

_INPUT = "input_filepath"
_INFO = "task_eligibility_info"
_INFO_OP = "CreateTaskEligibilityInfo"
_INFO_VERSION = 1
#: What the checkpoint holds if there are no parameters: published clients fetch no empty one.
_NOTHING: Mapping[str, np.ndarray[Any, Any]] = {"none": np.zeros((), np.int64)}


def eligibility_task(
    weigh: Callable[..., Any],
    example_selector: NestedExampleSelector,
    task_names: Sequence[str],
    *,
    parameters: Mapping[str, Any] | None = None,
    policies: Sequence[PolicyChoice] = (),
    covers: Sequence[str] = (),
) -> EligibilityTask:
    """Return an eligibility task whose plan runs a function on each device.

    >>> def enough(examples):                                            # doctest: +SKIP
    ...     count = examples.reduce(tf.constant(0, tf.int64), lambda n, _: n + 1)
    ...     return tf.cast(count >= 20, tf.float32)

    :param weigh: traced like a ``tf.function``, with what *example_selector* selects: a
        ``tf.data.Dataset`` of serialized examples, or a mapping or tuple of them; and, if there are
        parameters, with the mapping of their tensors. It returns the weight of all tasks, a scalar,
        or a mapping with one for each. 0 is not eligible. It has no variables.
    :param example_selector: an ``ExampleSelector``, or nested mappings, lists and tuples of them.
    :param task_names: the tasks that it decides about.
    :param parameters: arrays that devices are sent beside the plan.
    :param policies: further policies, as :class:`EligibilityTask` has them.
    :param covers: the names of those that *weigh* checks too.
    :raises ValueError: if it weighs other tasks than it decides about, its weights are no scalars,
        or it has variables.
    """
    names = list(task_names)
    values: dict[str, np.ndarray[Any, Any]] = {
        name: np.asarray(value) for name, value in (parameters or {}).items()
    }
    selectors = selectors_in_order(example_selector)
    traced = _trace(weigh, example_selector, values, names)
    graph = tf.Graph()
    with graph.as_default():
        tf.compat.v1.placeholder(tf.string, (), TOKEN)
        path = tf.compat.v1.placeholder(tf.string, (), _INPUT)
        data = [
            tf.compat.v1.placeholder(tf.variant, (), f"data_{number}")
            for number in range(len(selectors))
        ]
        weights = _import(traced, [*data, *(_restored(path, values) if values else [])])
        tf.stack(weights, name="weights")
        tf.constant(_INFO_VERSION, tf.int64, name="version")
        tf.constant(names, tf.string, name="names")
    ends = [TOKEN, _INPUT, "weights", "version", "names"]
    ends += [f"data_{number}" for number in range(len(selectors))]
    graph_def = graph.as_graph_def()
    graph_def = only(graph_def, ancestors(graph_def, ends))
    add_datasets(graph_def, selectors)
    graph_def.node.add(name=_INFO, op=_INFO_OP).input.extend(["version", "names", "weights"])

    return EligibilityTask(
        _plan(graph_def.SerializeToString(deterministic=True)),
        write_checkpoint(values or _NOTHING, "tf_v1"),
        task_names=names,
        policies=policies,
        covers=covers,
    )


def _plan(graph: bytes) -> bytes:
    """Return the serialized plan of a serialized graph."""
    plan = plan_pb2.ClientOnlyPlan(graph=graph)
    spec = plan.phase.tensorflow_spec
    spec.dataset_token_tensor_name = f"{TOKEN}:0"
    spec.input_tensor_specs.append(string_spec(_INPUT))
    spec.output_tensor_specs.append(string_spec(_INFO))
    router = plan.phase.federated_compute_eligibility
    router.input_filepath_tensor_name = f"{_INPUT}:0"
    router.task_eligibility_info_tensor_name = f"{_INFO}:0"
    return plan.SerializeToString(deterministic=True)


def _trace(
    weigh: Callable[..., Any],
    selector: NestedExampleSelector,
    values: Mapping[str, np.ndarray[Any, Any]],
    names: Sequence[str],
) -> Any:
    """Return a concrete function of the data, depth first, and the parameters to the weights.

    :raises ValueError: if it has variables, or :func:`_weights` refuses what it returns.
    """

    def flat(handles: Sequence[Any], parameters: Sequence[Any]) -> list[Any]:
        arguments = [_datasets(selector, iter(handles))]
        if values:
            arguments.append(dict(zip(values, parameters, strict=True)))
        return _weights(weigh(*arguments), names)

    handles = [tf.TensorSpec((), tf.variant)] * len(selectors_in_order(selector))
    parameters = [tf.TensorSpec(value.shape, value.dtype) for value in values.values()]
    traced = tf.function(flat).get_concrete_function(handles, parameters)
    if traced.graph.variables:
        raise ValueError("an eligibility plan has no variables: nothing would initialise them")
    return traced


def _datasets(selector: NestedExampleSelector, handles: Iterator[Any]) -> Any:
    """Return a dataset for each selector, in the order of ``selectors_in_order``."""
    elements = elements_of(selector)
    if elements is not None:
        datasets = {key: _datasets(inner, handles) for key, inner in elements.items()}
        return datasets if isinstance(selector, Mapping) else tuple(datasets.values())
    return tf.data.experimental.from_variant(next(handles), tf.TensorSpec((), tf.string))


def _import(traced: Any, arguments: Sequence[Any]) -> list[Any]:
    """Put what was traced into the current graph; return its outputs.

    A call of the function would do too, but not with what it has captured.
    """
    graph = traced.graph
    captured = [tf.constant(value.numpy()) for value, _ in graph.captures]
    inputs = dict(
        zip((tensor.name for tensor in graph.inputs), [*arguments, *captured], strict=True)
    )
    outputs = [tensor.name for tensor in graph.outputs]
    checks = [operation.name for operation in graph.control_outputs]
    found = tf.graph_util.import_graph_def(
        graph.as_graph_def(), inputs, outputs + checks, name="weigh"
    )
    with tf.control_dependencies(found[len(outputs) :]):
        return [tf.identity(tensor) for tensor in found[: len(outputs)]]


def _restored(path: Any, values: Mapping[str, np.ndarray[Any, Any]]) -> list[Any]:
    """Return the parameters as the plan's checkpoint has them, in order."""
    tensors = tf.raw_ops.RestoreV2(
        prefix=path,
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        dtypes=[tf.as_dtype(value.dtype) for value in values.values()],
        name="restore_parameters",
    )
    return [
        tf.ensure_shape(tensor, value.shape)
        for tensor, value in zip(tensors, values.values(), strict=True)
    ]


def _weights(found: Any, names: Sequence[str]) -> list[Any]:
    """Return a weight for each task.

    :raises ValueError: if there are others, or one is no scalar.
    """
    by_name = found if isinstance(found, Mapping) else dict.fromkeys(names, found)
    if set(by_name) != set(names) or not names:
        raise ValueError(
            f"the function weighs {sorted(by_name)}, it is to decide about {sorted(names)}"
        )
    weights = [tf.cast(by_name[name], tf.float32) for name in names]
    for name, weight in zip(names, weights, strict=True):
        if weight.shape.rank != 0:
            raise ValueError(f"the weight of {name} must be a scalar, not of shape {weight.shape}")
    return weights
