"""Rewriting of intrinsics that TFF's own DistributeAggregateForm does not take as they are.

``federated_aggregate`` carries functions, which cannot be arguments of the form's aggregations. It
is replaced by an intrinsic of ours whose last argument is a number, under which the functions are
kept aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.compiler import (
    intrinsic_defs,
    transformation_utils,
    transformations,
    tree_analysis,
)
from tensorflow_federated.python.core.impl.types import computation_types

AGGREGATE_URI = "federated_aggregate"
NUMBERED_AGGREGATE_URI = "fcp_federated_aggregate"

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


def call_dominant(block: Any) -> Any:
    """Return a computation's block with every call of an intrinsic bound at the top.

    :raises ValueError: naming an intrinsic that cannot be lowered to broadcasts, local processing
        and aggregations, or if what is broadcast depends on an aggregate.
    """
    block = transformations.to_call_dominant(block)

    def check(inner: Any) -> None:
        if isinstance(inner, tff.framework.Intrinsic) and inner.uri not in (
            _LOCAL | AGGREGATIONS | {AGGREGATE_URI}
        ):
            raise ValueError(
                f"the intrinsic {inner.uri} cannot run on devices: it is neither local processing "
                f"nor a broadcast nor one of the aggregations "
                f"{', '.join(sorted(AGGREGATIONS | {AGGREGATE_URI}))}"
            )

    tree_analysis.visit_postorder(block, check)
    tree_analysis.check_broadcast_not_dependent_on_aggregate(block)
    return block


def number_aggregates(block: Any) -> tuple[Any, list[AggregateFunctions]]:
    """Replace each ``federated_aggregate`` of a call-dominant block by a numbered one.

    :returns: the block, and the functions by number.
    :raises ValueError: if a function uses a value from outside of it.
    """
    _register()
    functions: list[AggregateFunctions] = []

    def replace(inner: Any) -> tuple[Any, bool]:
        if not (
            isinstance(inner, tff.framework.Call)
            and isinstance(inner.function, tff.framework.Intrinsic)
            and inner.function.uri == AGGREGATE_URI
        ):
            return inner, False
        argument = inner.argument
        value, zero, *rest = (
            list(argument)
            if isinstance(argument, tff.framework.Struct)
            else [tff.framework.Selection(argument, index=index) for index in range(5)]
        )
        for label, function in zip(("accumulate", "merge", "report"), rest, strict=True):
            if not tree_analysis.contains_no_unbound_references(function):
                raise ValueError(
                    f"the {label} function of a federated_aggregate uses a value from outside of "
                    "it; pass it in with the values or with the accumulator"
                )
        functions.append(AggregateFunctions(*rest))
        number = tff.framework.Literal(
            np.int32(len(functions) - 1), computation_types.TensorType(np.int32)
        )
        intrinsic = tff.framework.Intrinsic(
            NUMBERED_AGGREGATE_URI,
            computation_types.FunctionType(
                computation_types.StructType(
                    [value.type_signature, zero.type_signature, number.type_signature]
                ),
                inner.type_signature,
            ),
        )
        return (
            tff.framework.Call(intrinsic, tff.framework.Struct([value, zero, number])),
            True,
        )

    block, _ = transformation_utils.transform_postorder(block, replace)
    return block, functions


def _register() -> None:
    """Make the numbered intrinsic known to TFF, once a process."""
    if intrinsic_defs.uri_to_intrinsic_def(NUMBERED_AGGREGATE_URI) is not None:
        return
    abstract = computation_types.AbstractType
    intrinsic_defs.IntrinsicDef(
        NUMBERED_AGGREGATE_URI.upper(),
        NUMBERED_AGGREGATE_URI,
        computation_types.FunctionType(
            computation_types.StructType(
                [
                    computation_types.FederatedType(abstract("T"), tff.CLIENTS),
                    abstract("U"),
                    computation_types.TensorType(np.int32),
                ]
            ),
            computation_types.FederatedType(abstract("R"), tff.SERVER),
        ),
        aggregation_kind=intrinsic_defs.AggregationKind.DEFAULT,
    )
