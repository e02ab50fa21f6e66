"""The aggregation core's configuration: read, checked, written, and made from a plan."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError

from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, Tensor, TensorSpec
from fcp_core.aggregation.tensors import (
    spec_from_proto,
    spec_to_proto,
    tensor_from_proto,
    tensor_to_proto,
)
from fcp_core.protocol.protos import aggregation_configuration_pb2 as configuration_pb2
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2, tensorflow_types_pb2
from fcp_core.protocol.status import Code, StatusError

GROUP_BY_URI = "fedsql_group_by"
DP_GROUP_BY_URI = "fedsql_dp_group_by"
DP_DISTINCT_URI = "fcp:dp_approx_count_distinct"
DP_BUNDLE_URI = "differential_privacy_tensor_aggregator_bundle"
DP_QUANTILE_URI = "GoogleSQL:$differential_privacy_percentile_cont"

#: The parameters of a DP group-by that come without names, by position.
_DP_GROUP_BY_PARAMETERS = ("epsilon", "delta", "max_groups_contributed")
_FEDSQL = "GoogleSQL:"
_FEDSQL_DP = "GoogleSQL:$differential_privacy_"


def parse_configuration(
    configuration: bytes | configuration_pb2.Configuration,
    known_uris: Container[str] | None = None,
) -> tuple[Intrinsic, ...]:
    """Read and check a configuration.

    FedSQL intrinsics that have no group-by around them are put together in one group-by without
    keys, which comes last; their scalar specifications become one-dimensional.

    :param configuration: the message or its bytes.
    :param known_uris: the URIs that some installed aggregator serves; None: not checked.
    :raises StatusError: INVALID_ARGUMENT, naming the intrinsic and what is wrong with it.
    """
    if isinstance(configuration, bytes):
        try:
            configuration = configuration_pb2.Configuration.FromString(configuration)
        except DecodeError as error:
            raise _bad(
                f"aggregation configuration: not a Configuration message ({error})"
            ) from None
    kept: list[Intrinsic] = []
    orphans: list[Intrinsic] = []
    for position, config in enumerate(configuration.intrinsic_configs):
        where = f"intrinsic {position} ({config.intrinsic_uri!r})"
        if known_uris is not None and config.intrinsic_uri not in known_uris:
            raise _bad(f"{where}: no installed aggregator serves this URI")
        intrinsic = _intrinsic(config, where)
        if _FEDSQL not in intrinsic.uri:
            kept.append(intrinsic)
        elif intrinsic.uri.startswith(_FEDSQL_DP):
            raise _bad(f"{where}: only usable inside {DP_GROUP_BY_URI!r} or {DP_BUNDLE_URI!r}")
        else:
            orphans.append(intrinsic)
    if orphans:
        kept.append(Intrinsic(GROUP_BY_URI, nested=tuple(orphans)))
    _check_outputs(kept)
    return tuple(kept)


def configuration_to_proto(intrinsics: Sequence[Intrinsic]) -> configuration_pb2.Configuration:
    """Write intrinsics as a configuration, inputs before parameters."""
    return configuration_pb2.Configuration(
        intrinsic_configs=[_config(intrinsic) for intrinsic in intrinsics]
    )


def configuration_from_server_aggregations(
    configs: Sequence[plan_pb2.ServerAggregationConfig],
    state: Mapping[str, Tensor] | None = None,
) -> configuration_pb2.Configuration:
    """Turn a plan's aggregations into the aggregation core's configuration.

    A ``state_tensor`` argument becomes a parameter that carries the tensor's name and its value.

    :param configs: ``ServerPhaseV2.aggregations``.
    :param state: the intermediate state that the prepare phase wrote, by tensor name.
    :raises StatusError: INVALID_ARGUMENT for an argument that is not set, a dtype or shape that
        cannot be aggregated, or a state value that does not fit its specification; NOT_FOUND for a
        state tensor that *state* lacks.
    """
    return configuration_pb2.Configuration(
        intrinsic_configs=[_from_server_aggregation(config, state or {}) for config in configs]
    )


def flat_inputs(intrinsic: Intrinsic) -> Iterator[TensorSpec]:
    """Iterate over the inputs of an intrinsic and of what it nests, depth first."""
    yield from intrinsic.inputs
    for nested in intrinsic.nested:
        yield from flat_inputs(nested)


def flat_outputs(intrinsic: Intrinsic) -> Iterator[TensorSpec]:
    """Iterate over the outputs of an intrinsic and of what it nests, depth first."""
    yield from intrinsic.outputs
    for nested in intrinsic.nested:
        yield from flat_outputs(nested)


def _intrinsic(config: configuration_pb2.Configuration.IntrinsicConfig, where: str) -> Intrinsic:
    inputs: list[TensorSpec] = []
    parameters: list[Parameter] = []
    for position, argument in enumerate(config.intrinsic_args):
        case = argument.WhichOneof("arg")
        if case is None:
            raise _bad(f"{where}: argument {position} is neither an input nor a parameter")
        try:
            if case == "input_tensor":
                inputs.append(spec_from_proto(argument.input_tensor))
            else:
                value = tensor_from_proto(argument.parameter)
                parameters.append(Parameter(argument.parameter.name, value))
        except StatusError as error:
            raise _bad(f"{where}: argument {position}: {error.message}") from error
    try:
        outputs = [spec_from_proto(output) for output in config.output_tensors]
    except StatusError as error:
        raise _bad(f"{where}: output: {error.message}") from error
    if _FEDSQL in config.intrinsic_uri:
        inputs = [_as_column(spec) for spec in inputs]
        if config.intrinsic_uri != DP_QUANTILE_URI:
            outputs = [_as_column(spec) for spec in outputs]
    return Intrinsic(
        config.intrinsic_uri,
        tuple(inputs),
        tuple(outputs),
        _name_parameters(config.intrinsic_uri, parameters, where),
        tuple(
            _intrinsic(inner, f"{where}, nested {position} ({inner.intrinsic_uri!r})")
            for position, inner in enumerate(config.inner_intrinsics)
        ),
    )


def _as_column(spec: TensorSpec) -> TensorSpec:
    return spec if spec.shape else replace(spec, shape=(-1,))


def _name_parameters(uri: str, parameters: list[Parameter], where: str) -> tuple[Parameter, ...]:
    named = sum(bool(parameter.name) for parameter in parameters)
    if named not in (0, len(parameters)):
        raise _bad(f"{where}: parameters must be all named or all unnamed, {named} are named")
    if uri != DP_GROUP_BY_URI or named or not parameters:
        return tuple(parameters)
    names = list(_DP_GROUP_BY_PARAMETERS)
    if len(parameters) > len(names):
        names.append("key_names")
        key_names = parameters[3].value
        if key_names.dtype != DataType.STRING.numpy or key_names.ndim != 1:
            raise _bad(f"{where}: unnamed parameter 3, the key names, must be a vector of strings")
        names.extend(name.decode(errors="backslashreplace") for name in key_names)
    if len(parameters) != len(names):
        raise _bad(f"{where}: {len(parameters)} unnamed parameters, where {names} are expected")
    return tuple(
        replace(parameter, name=name) for parameter, name in zip(parameters, names, strict=True)
    )


def _check_outputs(intrinsics: Sequence[Intrinsic]) -> None:
    seen: set[str] = set()
    for intrinsic in intrinsics:
        for output in flat_outputs(intrinsic):
            if output.name in seen:
                raise _bad(f"two outputs are named {output.name!r}")
            if output.name:
                seen.add(output.name)


def _config(intrinsic: Intrinsic) -> configuration_pb2.Configuration.IntrinsicConfig:
    config = configuration_pb2.Configuration.IntrinsicConfig(
        intrinsic_uri=intrinsic.uri,
        output_tensors=[spec_to_proto(spec) for spec in intrinsic.outputs],
        inner_intrinsics=[_config(nested) for nested in intrinsic.nested],
    )
    for spec in intrinsic.inputs:
        config.intrinsic_args.add().input_tensor.CopyFrom(spec_to_proto(spec))
    for parameter in intrinsic.parameters:
        proto = tensor_to_proto(parameter.value, parameter.name)
        config.intrinsic_args.add().parameter.CopyFrom(proto)
    return config


def _from_server_aggregation(
    aggregation: plan_pb2.ServerAggregationConfig, state: Mapping[str, Tensor]
) -> configuration_pb2.Configuration.IntrinsicConfig:
    where = f"aggregation {aggregation.intrinsic_uri!r}"
    config = configuration_pb2.Configuration.IntrinsicConfig(
        intrinsic_uri=aggregation.intrinsic_uri,
        output_tensors=[
            spec_to_proto(_from_tensorflow(spec, where)) for spec in aggregation.output_tensors
        ],
        inner_intrinsics=[
            _from_server_aggregation(inner, state) for inner in aggregation.inner_aggregations
        ],
    )
    for position, argument in enumerate(aggregation.intrinsic_args):
        case = argument.WhichOneof("arg")
        if case is None:
            raise _bad(f"{where}: argument {position} is neither an input nor a state tensor")
        if case == "input_tensor":
            spec = _from_tensorflow(argument.input_tensor, where)
            config.intrinsic_args.add().input_tensor.CopyFrom(spec_to_proto(spec))
            continue
        spec = _from_tensorflow(argument.state_tensor, where)
        if spec.name not in state:
            raise StatusError(
                Code.NOT_FOUND, f"{where}: the intermediate state has no tensor {spec.name!r}"
            )
        value = state[spec.name]
        if not spec.matches(value):
            raise _bad(
                f"{where}: the plan wants {spec}, the intermediate state has "
                f"{value.dtype}{list(value.shape)}"
            )
        config.intrinsic_args.add().parameter.CopyFrom(tensor_to_proto(value, spec.name))
    return config


def _from_tensorflow(proto: tensorflow_struct_pb2.TensorSpecProto, where: str) -> TensorSpec:
    if int(proto.dtype) not in {int(dtype) for dtype in DataType}:
        try:
            name = tensorflow_types_pb2.DataType.Name(proto.dtype)
        except ValueError:
            name = str(proto.dtype)
        known = ", ".join(f"DT_{dtype.name}" for dtype in DataType)
        raise _bad(
            f"{where}: tensor {proto.name!r} has dtype {name}, which cannot be aggregated; "
            f"cast it to one of {known}"
        )
    if proto.shape.unknown_rank:
        raise _bad(f"{where}: tensor {proto.name!r} has a shape of unknown rank")
    return TensorSpec(proto.name, DataType(proto.dtype), tuple(dim.size for dim in proto.shape.dim))


def _bad(message: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, message)
