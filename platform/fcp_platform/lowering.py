"""A TFF computation taken apart: what the server prepares, devices run, and the server makes of it.

TFF's DistributeAggregateForm gives five computations. Three of them become TensorFlow graphs; the
broadcasts become names in the checkpoint that devices download, and the aggregations become the
configurations that a plan carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_platform import encoding, intrinsics, naming, select
from fcp_platform.encoding import Encoding
from fcp_platform.functions import serialize_functions
from fcp_platform.graphs import LocalGraph, local_graph
from fcp_platform.naming import Constant, Leaf
from fcp_platform.select import Select

#: How much of one of TFF's errors is told, in characters; the rest is in the error's cause.
_BRIEF = 160

#: The prefix of what the server prepares for the broadcasts.
PREPARED = "prepared"


@dataclass
class Aggregations:
    """The aggregations of a computation, and how their tensors are written.

    :param configs: one for each aggregated leaf, or for each ``federated_aggregate``.
    :param updates: how a device writes each tensor of its update, by name.
    :param parameters: how the tensors of the intermediate state that are parameters are written.
    :param constants: parameters that the server does not have to prepare, by name.
    :param outputs: how the tensors of the aggregate are read, by name.
    """

    configs: list[plan_pb2.ServerAggregationConfig] = field(default_factory=list)
    updates: dict[str, Encoding] = field(default_factory=dict)
    parameters: dict[str, Encoding] = field(default_factory=dict)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    outputs: dict[str, Encoding] = field(default_factory=dict)


@dataclass(frozen=True)
class Lowered:
    """A computation ready for devices.

    :param prepare: ``server/...`` to ``prepared/...`` and ``intermediate_state/...``.
    :param broadcast: where each ``client/...`` tensor comes from: a tensor that ``prepare`` makes,
        or a constant.
    :param selects: what serves slices; each names them in a ``client/...`` tensor.
    :param client: the data's sequences and ``client/...`` to ``update/...``.
    :param result: ``intermediate_state/...`` and ``intermediate_update/0/...`` to ``server/...``
        and ``metrics/...``.
    :param plain_client: as *client*, as it was before Grappler, whose control flow TFLite lacks.
    """

    prepare: LocalGraph
    broadcast: dict[Leaf, str | Constant]
    selects: tuple[Select, ...]
    client: LocalGraph
    aggregations: Aggregations
    result: LocalGraph
    plain_client: LocalGraph


def distribute_aggregate_form(comp: Any) -> tuple[Any, intrinsics.Functions]:
    """Return TFF's DistributeAggregateForm and the functions that it has no place for.

    :raises TypeError: if the computation has not two arguments and two results.
    :raises ValueError: if it cannot be split into broadcasts, local processing and aggregations;
        the message names the intrinsic at fault.
    """
    block, functions = intrinsics.number_functions(
        intrinsics.call_dominant(comp.to_building_block())
    )
    try:
        form = tff.backends.mapreduce.get_distribute_aggregate_form_for_computation(
            comp, tff_internal_preprocessing=lambda _: block
        )
    except Exception as error:
        raise ValueError(
            "the computation cannot be split into what the server prepares, broadcasts, what "
            "clients do, aggregations, and what the server makes of the aggregates; an aggregation "
            f"may not need the result of another one (TFF: {_brief(error)})"
        ) from error
    return form, functions


def lower(form: Any, functions: intrinsics.Functions, config: Any = None) -> Lowered:
    """Lower a computation.

    :param form: a ``tff.backends.mapreduce.DistributeAggregateForm``.
    :param functions: the functions of its numbered intrinsics.
    :param config: Grappler's settings, a ``tf.compat.v1.ConfigProto``; None for TensorFlow's own.
    :raises ValueError: if a part of it cannot run where it has to; the message says which part.
    :raises TypeError: for a tensor that cannot travel; the message names it.
    """
    if config is None:
        config = tf.compat.v1.ConfigProto()
    prepare = _local(
        form.server_prepare,
        "what the server does before the broadcast",
        naming.STATE,
        (PREPARED, naming.INTERMEDIATE_STATE),
        config,
    )
    plain = tf.compat.v1.ConfigProto()
    plain.graph_options.rewrite_options.disable_meta_optimizer = True
    client, plain_client = (
        _local(form.client_work, "what clients do", ("data", naming.BROADCAST), naming.UPDATE, way)
        for way in (config, plain)
    )
    result = _local(
        form.server_result,
        "what the server does with the aggregate",
        (naming.INTERMEDIATE_STATE, naming.AGGREGATE),
        (naming.STATE, naming.METRICS),
        config,
    )
    for port in (*prepare.inputs, *prepare.outputs, *result.inputs, *result.outputs):
        _ = port.leaf.dtype  # a sequence is refused
    broadcast, selects = _broadcast(
        form.server_to_client_broadcast.to_building_block(), functions.selects, config
    )
    aggregations = _aggregations(
        form.client_to_server_aggregation.to_building_block(), functions.aggregates, config
    )
    if not aggregations.configs:
        raise ValueError(
            "the computation aggregates nothing: devices would have nothing to contribute"
        )
    return Lowered(prepare, broadcast, selects, client, aggregations, result, plain_client)


def _local(
    comp: Any, what: str, parameters: Sequence[str] | str, results: Sequence[str] | str, config: Any
) -> LocalGraph:
    try:
        return local_graph(comp.to_building_block(), parameters, results, config)
    except Exception as error:
        raise ValueError(f"{what} cannot be made one TensorFlow graph: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    """Return the first words of an error; TFF appends whole computations as syntax trees."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    line = line.split("(let", 1)[0].split("(FEDERATED_", 1)[0].split(" ->", 1)[0].rstrip(" :(")
    return line if len(line) <= _BRIEF else f"{line[:_BRIEF]}..."


def _broadcast(
    block: Any, functions: Sequence[Any], config: Any
) -> tuple[dict[Leaf, str | Constant], tuple[Select, ...]]:
    sources: dict[Leaf, str | Constant] = {}
    selects: list[Select] = []
    for index, (_, call) in enumerate(block.result.locals):
        targets = naming.leaves(call.type_signature, f"{naming.BROADCAST}/{index}")
        if call.function.uri == intrinsics.NUMBERED_SELECT_URI:
            made = _select(targets[0], call, functions, config)
            selects.append(made)
            sources[made.target] = Constant(np.array(made.served_at_id.encode(), dtype=object))
            continue
        given = _argument_leaves(call.argument, (PREPARED,))
        for target, source in zip(targets, given, strict=True):
            encoding.stored(target.name, target.dtype)
            sources[target] = _source(source)
    return sources, tuple(selects)


def _select(target: Leaf, call: Any, functions: Sequence[Any], config: Any) -> Select:
    (max_key,), value, (number,) = (
        _argument_leaves(argument, (PREPARED,)) for argument in _arguments(call)
    )
    assert isinstance(number, Constant)  # intrinsics.number_functions put it there
    try:
        graph = local_graph(functions[int(number.value)], select.PARAMETERS, select.SLICE, config)
    except Exception as error:
        raise ValueError(
            f"the select function of a federated_select cannot be made one TensorFlow graph: "
            f"{_brief(error)}"
        ) from error
    return Select(target, _source(max_key), tuple(_source(leaf) for leaf in value), graph)


def _source(leaf: Leaf | Constant) -> str | Constant:
    return leaf.name if isinstance(leaf, Leaf) else leaf


def _aggregations(
    block: Any, functions: Sequence[intrinsics.AggregateFunctions], config: Any
) -> Aggregations:
    found = Aggregations()
    prefixes = (naming.INTERMEDIATE_STATE, naming.UPDATE)
    for index, (_, call) in enumerate(block.result.locals):
        uri = call.function.uri
        outputs = naming.leaves(call.type_signature, f"{naming.AGGREGATE}/{index}")
        arguments = [_argument_leaves(argument, prefixes) for argument in _arguments(call)]
        if uri == intrinsics.NUMBERED_AGGREGATE_URI:
            value, zero, (number,) = arguments
            assert isinstance(number, Constant)  # intrinsics.number_functions put it there
            _aggregate(found, index, value, zero, outputs, functions[int(number.value)], config)
            continue
        for position, output in enumerate(outputs):
            aggregation = plan_pb2.ServerAggregationConfig(intrinsic_uri=uri)
            for number_of, argument in enumerate(arguments):
                leaf = argument[min(position, len(argument) - 1)]
                name = f"constant/{index}/{position}/{number_of}"
                _add_argument(found, aggregation, uri, leaf, name)
            _add_output(found, aggregation, uri, output)
            found.configs.append(aggregation)
    return found


def _aggregate(
    found: Aggregations,
    index: int,
    value: Sequence[Leaf | Constant],
    zero: Sequence[Leaf | Constant],
    outputs: Sequence[Leaf],
    functions: intrinsics.AggregateFunctions,
    config: Any,
) -> None:
    """Add a ``federated_aggregate``: its functions and its zero travel as parameters."""
    uri = intrinsics.AGGREGATE_URI
    aggregation = plan_pb2.ServerAggregationConfig(intrinsic_uri=uri)
    for leaf in value:
        _add_argument(found, aggregation, uri, leaf, "")
    graphs = Constant(serialize_functions(functions, config))
    _add_argument(found, aggregation, uri, graphs, f"constant/{index}/functions")
    for position, leaf in enumerate(zero):
        _add_argument(found, aggregation, uri, leaf, f"constant/{index}/zero/{position}")
    for output in outputs:
        _add_output(found, aggregation, uri, output)
    found.configs.append(aggregation)


def _add_argument(
    found: Aggregations,
    aggregation: plan_pb2.ServerAggregationConfig,
    uri: str,
    leaf: Leaf | Constant,
    constant_name: str,
) -> None:
    """Add an input tensor, or a parameter: from the intermediate state, or a constant."""
    argument = aggregation.intrinsic_args.add()
    if isinstance(leaf, Constant):
        tensor_type = tff.TensorType(
            np.str_ if leaf.value.dtype == object else leaf.value.dtype, leaf.value.shape
        )
        leaf_encoding = encoding.aggregated(constant_name, uri, tensor_type.dtype)
        found.constants[constant_name] = leaf_encoding.encode_array(leaf.value)
        spec = _spec(Leaf(constant_name, tensor_type), leaf_encoding)
        argument.state_tensor.CopyFrom(spec)
        return
    leaf_encoding = encoding.aggregated(leaf.name, uri, leaf.dtype)
    if leaf.name.startswith(f"{naming.UPDATE}/"):
        _check_shape(leaf, uri)
        found.updates[leaf.name] = leaf_encoding
        argument.input_tensor.CopyFrom(_spec(leaf, leaf_encoding))
    else:
        found.parameters[leaf.name] = leaf_encoding
        argument.state_tensor.CopyFrom(_spec(leaf, leaf_encoding))


def _add_output(
    found: Aggregations, aggregation: plan_pb2.ServerAggregationConfig, uri: str, leaf: Leaf
) -> None:
    found.outputs[leaf.name] = encoding.aggregated(leaf.name, uri, leaf.dtype)
    aggregation.output_tensors.append(_spec(leaf, found.outputs[leaf.name]))


def _check_shape(leaf: Leaf, uri: str) -> None:
    shape = leaf.type.shape
    if shape is None:
        raise TypeError(f"{leaf.name!r} has the type {leaf.type}: its rank must be known")
    if uri != intrinsics.AGGREGATE_URI and any(size is None for size in shape):
        raise TypeError(
            f"{uri} cannot aggregate {leaf.name!r} of type {leaf.type}: every dimension must be "
            "known"
        )


def _spec(leaf: Leaf, leaf_encoding: Encoding) -> tensorflow_struct_pb2.TensorSpecProto:
    spec = tensorflow_struct_pb2.TensorSpecProto(
        name=leaf.name, dtype=leaf_encoding.wire.as_datatype_enum
    )
    if leaf.type.shape is None:
        spec.shape.unknown_rank = True
        return spec
    spec.shape.SetInParent()
    for size in (*leaf.type.shape, *leaf_encoding.suffix):
        spec.shape.dim.add(size=-1 if size is None else size)
    return spec


def _arguments(call: Any) -> list[Any]:
    """Return the arguments of an intrinsic's call as building blocks."""
    argument = call.argument
    if not isinstance(argument.type_signature, tff.StructType):
        return [argument]
    if isinstance(argument, tff.framework.Struct):
        return list(argument)
    return [
        tff.framework.Selection(argument, index=index)
        for index in range(len(argument.type_signature))
    ]


def _argument_leaves(argument: Any, prefixes: Sequence[str]) -> list[Leaf | Constant]:
    """Return the leaves of an argument.

    :param argument: selections of the parameter, literals, or structures of them.
    :param prefixes: a prefix of names for each element of the parameter; if there is one alone, it
        is for the parameter as a whole.
    """
    if isinstance(argument, tff.framework.Literal):
        value = argument.value
        if isinstance(value, (str, bytes)):
            text = value.encode() if isinstance(value, str) else value
            return [Constant(np.array(text, dtype=object))]
        return [Constant(np.asarray(value, dtype=argument.type_signature.dtype))]
    if isinstance(argument, tff.framework.Struct):
        return [leaf for element in argument for leaf in _argument_leaves(element, prefixes)]
    path: list[int] = []
    source = argument
    while isinstance(source, tff.framework.Selection):
        path.insert(0, source.as_index())
        source = source.source
    type_spec, name = source.type_signature, prefixes[0]
    for depth, index in enumerate(path):
        element, element_type = naming.member_types(naming.unplaced(type_spec))[index]
        if depth == 0 and len(prefixes) > 1:
            name = prefixes[index]
        else:
            name = naming.element_name(name, element, index)
        type_spec = element_type
    return list(naming.leaves(argument.type_signature, name))
