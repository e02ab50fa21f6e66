"""The built-in aggregators, protocol and engine, registered like anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcp_aggregators import (
    group_by,
    group_columns,
    mean,
    median,
    secure_sum,
    simple_protocol,
    vector,
)
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import make_local_engine
from fcp_core.aggregation.numbers import ALLOW_NON_FINITE
from fcp_core.plugins import hookimpl
from fcp_core.rounds.protocols import AggregationProtocolFactory

if TYPE_CHECKING:
    from fcp_core.plugins.config import OptionRegistry

fcp_api_version = 1

#: The means of :mod:`fcp_aggregators.mean`.
MEANS = tuple(factory.name for factory in mean.FACTORIES)
#: The aggregators in which infinities may mean something.
ALLOWING = (
    *(factory.name for factory in vector.FACTORIES),
    *MEANS,
    *(factory.name for factory in median.FACTORIES),
    group_by.GROUP_BY_URI,
    group_columns.SUM_URI,
)


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of the aggregators, the simple protocol and the local engine."""
    for name in ALLOWING:
        options.add(
            f"aggregator.{name}",
            ALLOW_NON_FINITE,
            type="bool",
            default=False,
            help="take NaN and infinities, and let sums overflow, instead of refusing a device",
        )
    for name in ("federated_sum", *MEANS):
        options.add(
            f"aggregator.{name}",
            "max_norm",
            type="float",
            default=0,
            help="refuse a device of whose tensors one has a larger Euclidean norm; 0: none is",
            minimum=0,
        )
    options.add(
        f"aggregator.{mean.WEIGHTED_MEAN_URI}",
        "max_weight",
        type="float",
        default=0,
        help="refuse a device with a larger weight; 0: none is, so that one device can be the mean",
        minimum=0,
    )
    _add_bounds_of_groups(options)
    for factory in secure_sum.FACTORIES:
        options.add(
            f"aggregator.{factory.name}",
            secure_sum.OPTION,
            type="bool",
            default=False,
            help="sum in the clear what asks for secure aggregation; the server sees each value",
            operator_only=True,
        )
    options.add(
        "protocol.simple",
        "detection_interval",
        type="duration",
        default=0,
        help="how often clients that take far longer than the others are given up; 0: never",
    )
    options.add(
        "protocol.simple",
        "grace_period",
        type="duration",
        default=0,
        help="what is added to the time after which such a client is given up",
    )
    options.add(
        "engine.local",
        "workers",
        type="int",
        default=-1,
        help="threads that fold; -1: one a processor, 0: fold where the contribution arrives",
        minimum=-1,
    )


def _add_bounds_of_groups(options: OptionRegistry) -> None:
    options.add(
        f"aggregator.{group_by.GROUP_BY_URI}",
        group_by.MAX_GROUPS,
        type="int",
        default=group_by.DEFAULT_MAX_GROUPS,
        help="how many groups there may be: the task ends with what it has; 0: as many as come",
        minimum=0,
    )
    options.add(
        f"aggregator.{group_by.GROUP_BY_URI}",
        group_by.MAX_BYTES,
        type="bytes",
        default="1GiB",
        help="how much memory the groups may take, estimated; 0: as much as they take",
        minimum=0,
    )


@hookimpl
def fcp_register_aggregators() -> list[AggregatorFactory]:
    """Return the built-in aggregators."""
    return [
        *vector.FACTORIES,
        *mean.FACTORIES,
        *median.FACTORIES,
        *secure_sum.FACTORIES,
        *group_by.FACTORIES,
    ]


@hookimpl
def fcp_register_aggregation_protocols() -> list[AggregationProtocolFactory]:
    """Return the simple protocol."""
    return [simple_protocol.FACTORY]


@hookimpl
def fcp_register_engines() -> list[EngineFactory]:
    """Return the local engine."""
    return [EngineFactory("local", "threads of the server's own process", make_local_engine)]
