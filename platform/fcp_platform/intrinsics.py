"""Rewriting of intrinsics that TFF's own DistributeAggregateForm does not take as they are.

``federated_aggregate`` and ``federated_select`` carry functions, which cannot be arguments of the
form's aggregations and broadcasts. They are replaced by intrinsics of ours whose last argument is a
number, under which the functions are kept aside. What is left of a select is a broadcast of the
name of its slices, and the reading of slices on the device.

``federated_secure_select`` keeps from the server what a client selects. So it becomes a broadcast
of all there is to select from, and the selecting on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.compiler import (
    building_block_factory,
    intrinsic_defs,
    transformation_utils,
    transformations,
    tree_analysis,
)
from tensorflow_federated.python.core.impl.types import computation_types

from fcp_platform import select

AGGREGATE_URI = "federated_aggregate"
SELECT_URI = "federated_select"
SECURE_SELECT_URI = "federated_secure_select"
NUMBERED_AGGREGATE_URI = "fcp_federated_aggregate"
NUMBERED_SELECT_URI = "fcp_federated_select"

#: Aggregations that are handed to the aggregation core under their own names.
AGGREGATIONS = frozenset(
    {
        "federated_sum",
        "federated_mean",
        "federated_weighted_mean",
        "federated_min",
        "federated_max",
        "federated_secure_sum",
        "federated_secure_sum_bitwidth",
        "federated_secure_modular_sum",
    }
)

#: Those whose values no server is to see.
SECURE = frozenset(uri for uri in AGGREGATIONS if uri.startswith("federated_secure_"))

#: Those that an aggregator with a URI of its own may serve instead.
REPLACEABLE = AGGREGATIONS - SECURE

_LOCAL = frozenset(
    {
        "federated_apply",
        "federated_broadcast",
        "federated_eval_at_clients",
        "federated_eval_at_server",
        "federated_map",
        "federated_map_all_equal",
        "federated_value_at_clients",
        "federated_value_at_server",
        "federated_zip_at_clients",
        "federated_zip_at_server",
        "generic_divide",
        "generic_multiply",
        "generic_plus",
    }
)


def own_uris(uris: Mapping[str, str]) -> dict[str, str]:
    """Return URIs of aggregators by the intrinsics that stand for them.

    :raises ValueError: if what is named is not an aggregation, or one whose values no server is to
        see; or if a URI is empty, or TFF's name for something else.
    """
    for intrinsic, uri in uris.items():
        if intrinsic not in REPLACEABLE:
            known = ", ".join(sorted(REPLACEABLE))
            raise ValueError(f"uris: {intrinsic!r} is none of {known}")
        if not isinstance(uri, str) or not uri or uri in _LOCAL | AGGREGATIONS | {AGGREGATE_URI}:
            raise ValueError(
                f"uris[{intrinsic!r}] must be the URI that an aggregator of yours serves, not "
                f"{uri!r}; one that serves TFF's own is named by 'aggregators'"
            )
    return dict(uris)


@dataclass(frozen=True)
class AggregateFunctions:
    """The functions of one ``federated_aggregate``, as building blocks.

    :param accumulate: (accumulator, value) -> accumulator.
    :param merge: (accumulator, accumulator) -> accumulator.
    :param report: accumulator -> result.
    """

    accumulate: Any
    merge: Any
    report: Any


@dataclass(frozen=True)
class Functions:
    """The functions of a computation's intrinsics, by their numbers.

    :param aggregates: of each ``federated_aggregate``.
    :param selects: of each ``federated_select``: (server's value, key) -> slice.
    """

    aggregates: list[AggregateFunctions] = field(default_factory=list)
    selects: list[Any] = field(default_factory=list)


def call_dominant(block: Any) -> Any:
    """Return a computation's block with every call of an intrinsic bound at the top.

    :raises ValueError: naming an intrinsic that cannot be lowered to broadcasts, local processing
        and aggregations, or if what is broadcast depends on an aggregate.
    """
    block = transformations.to_call_dominant(block)

    def check(inner: Any) -> None:
        if isinstance(inner, tff.framework.Intrinsic) and inner.uri not in (
            _LOCAL | AGGREGATIONS | {AGGREGATE_URI, SELECT_URI, SECURE_SELECT_URI}
        ):
            raise ValueError(
                f"the intrinsic {inner.uri} cannot run on devices: it is neither local processing "
                f"nor a broadcast nor {SELECT_URI} nor one of the aggregations "
                f"{', '.join(sorted(AGGREGATIONS | {AGGREGATE_URI}))}"
            )

    tree_analysis.visit_postorder(block, check)
    try:
        tree_analysis.check_broadcast_not_dependent_on_aggregate(block)
    except ValueError as error:
        # Its own message shows the computation as a syntax tree.
        raise ValueError(
            "a broadcast, or the server's value of a federated_select, depends on an aggregate: "
            "devices are asked once in a round; put the aggregate into the state, and broadcast "
            "it in the next round"
        ) from error
    return block


def number_functions(block: Any) -> tuple[Any, Functions]:
    """Replace each ``federated_aggregate`` and ``federated_select`` by a numbered intrinsic.

    :param block: a call-dominant block.
    :returns: the block, and the functions by number.
    :raises ValueError: if a function uses a value from outside of it.
    """
    _register()
    functions = Functions()

    def replace(inner: Any) -> tuple[Any, bool]:
        if not (
            isinstance(inner, tff.framework.Call)
            and isinstance(inner.function, tff.framework.Intrinsic)
        ):
            return inner, False
        if inner.function.uri == AGGREGATE_URI:
            return _numbered_aggregate(inner, functions.aggregates), True
        if inner.function.uri == SECURE_SELECT_URI:
            return _select_on_device(inner), True
        if inner.function.uri == SELECT_URI:
            return _numbered_select(inner, functions.selects), True
        return inner, False

    block, _ = transformation_utils.transform_postorder(block, replace)
    return block, functions


def _numbered_aggregate(call: Any, functions: list[AggregateFunctions]) -> Any:
    value, zero, *rest = _arguments(call, 5)
    for label, function in zip(("accumulate", "merge", "report"), rest, strict=True):
        _check_closed(f"the {label} function of a federated_aggregate", function)
    functions.append(AggregateFunctions(*rest))
    number = len(functions) - 1
    return _numbered_call(NUMBERED_AGGREGATE_URI, [value, zero], number, call.type_signature)


def _numbered_select(call: Any, functions: list[Any]) -> Any:
    keys, max_key, value, function = _arguments(call, 4)
    _check_closed("the select function of a federated_select", function)
    functions.append(function)
    served_at_id = _numbered_call(
        NUMBERED_SELECT_URI,
        [max_key, value],
        len(functions) - 1,
        tff.FederatedType(np.str_, tff.CLIENTS, all_equal=True),
    )
    fetch = select.fetching(keys.type_signature.member, function.type_signature.result)
    fetched = building_block_factory.create_federated_map_or_apply(
        fetch,
        building_block_factory.create_federated_zip(
            tff.framework.Struct([("keys", keys), ("served_at_id", served_at_id)])
        ),
    )
    if not call.type_signature.is_assignable_from(fetched.type_signature):
        raise TypeError(
            f"federated_select: slices are read as {fetched.type_signature}, the computation "
            f"expects {call.type_signature}"
        )
    return fetched


def _select_on_device(call: Any) -> Any:
    keys, max_key, value, function = _arguments(call, 4)
    _check_closed("the select function of a federated_secure_select", function)
    sent = building_block_factory.create_federated_broadcast(
        building_block_factory.create_federated_zip(
            tff.framework.Struct([("value", value), ("max_key", max_key)])
        )
    )
    choose = select.choosing(keys.type_signature.member, sent.type_signature.member, function)
    return building_block_factory.create_federated_map_or_apply(
        choose,
        building_block_factory.create_federated_zip(
            tff.framework.Struct([("keys", keys), ("sent", sent)])
        ),
    )


def _arguments(call: Any, count: int) -> list[Any]:
    if isinstance(call.argument, tff.framework.Struct):
        return list(call.argument)
    return [tff.framework.Selection(call.argument, index=index) for index in range(count)]


def _check_closed(what: str, function: Any) -> None:
    if not tree_analysis.contains_no_unbound_references(function):
        raise ValueError(
            f"{what} uses a value from outside of it; pass it in with its other arguments"
        )


def _numbered_call(uri: str, arguments: Sequence[Any], number: int, result_type: Any) -> Any:
    literal = tff.framework.Literal(np.int32(number), computation_types.TensorType(np.int32))
    given = [*arguments, literal]
    parameter_type = computation_types.StructType([value.type_signature for value in given])
    intrinsic = tff.framework.Intrinsic(
        uri, computation_types.FunctionType(parameter_type, result_type)
    )
    return tff.framework.Call(intrinsic, tff.framework.Struct(given))


def _register() -> None:
    """Make the numbered intrinsics known to TFF, once a process."""
    if intrinsic_defs.uri_to_intrinsic_def(NUMBERED_AGGREGATE_URI) is not None:
        return
    abstract, number = computation_types.AbstractType, computation_types.TensorType(np.int32)
    intrinsic_defs.IntrinsicDef(
        NUMBERED_AGGREGATE_URI.upper(),
        NUMBERED_AGGREGATE_URI,
        computation_types.FunctionType(
            [tff.FederatedType(abstract("T"), tff.CLIENTS), abstract("U"), number],
            tff.FederatedType(abstract("R"), tff.SERVER),
        ),
        aggregation_kind=intrinsic_defs.AggregationKind.DEFAULT,
    )
    intrinsic_defs.IntrinsicDef(
        NUMBERED_SELECT_URI.upper(),
        NUMBERED_SELECT_URI,
        computation_types.FunctionType(
            [
                tff.FederatedType(np.int32, tff.SERVER),
                tff.FederatedType(abstract("S"), tff.SERVER),
                number,
            ],
            tff.FederatedType(np.str_, tff.CLIENTS, all_equal=True),
        ),
        broadcast_kind=intrinsic_defs.BroadcastKind.DEFAULT,
    )
