"""The built-in aggregators, protocol and engine, registered like anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcp_core.plugins import hookimpl

# What is registered is imported when it is asked for: the command line looks at every plugin, and
# mostly for its commands only.
if TYPE_CHECKING:
    from fcp_core.aggregation.aggregator import AggregatorFactory
    from fcp_core.aggregation.engine import EngineFactory
    from fcp_core.plugins.config import OptionRegistry
    from fcp_core.rounds.protocols import AggregationProtocolFactory

fcp_api_version = 1


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of the aggregators, the simple protocol and the local engine."""
    from fcp_aggregators import group_by, mean, median, secure_sum, vector
    from fcp_core.aggregation.checks import WEIGHTED_MEAN_URI
    from fcp_core.aggregation.numbers import ALLOW_NON_FINITE

    means = tuple(factory.name for factory in mean.FACTORIES)
    # In these infinities may mean something.
    allowing = (
        *(factory.name for factory in vector.FACTORIES),
        *means,
        *(factory.name for factory in median.FACTORIES),
        *(factory.name for factory in group_by.FACTORIES[:2]),
    )
    options.add(
        "aggregator",
        ALLOW_NON_FINITE,
        type="bool",
        default=False,
        help="take NaN and infinities, and let sums overflow, instead of refusing a device",
        of=allowing,
    )
    options.add(
        "aggregator",
        "max_norm",
        type="float",
        default=0,
        help="refuse a device of whose tensors one has a larger Euclidean norm; 0: none is",
        minimum=0,
        of=("federated_sum", *means),
    )
    options.add(
        f"aggregator.{WEIGHTED_MEAN_URI}",
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
    _add_other_options(options)


@hookimpl
def fcp_register_aggregators() -> list[AggregatorFactory]:
    """Return the built-in aggregators."""
    from fcp_aggregators import group_by, mean, median, secure_sum, vector

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
    from fcp_aggregators import simple_protocol

    return [simple_protocol.FACTORY]


@hookimpl
def fcp_register_engines() -> list[EngineFactory]:
    """Return the local engine."""
    from fcp_core.aggregation.engine import EngineFactory
    from fcp_core.aggregation.local import make_local_engine

    return [EngineFactory("local", "threads of the server's own process", make_local_engine)]


def _add_other_options(options: OptionRegistry) -> None:
    """Declare those of the local engine."""
    options.add(
        "engine.local",
        "workers",
        type="int",
        default=-1,
        help="threads that fold; -1: one a processor, 0: fold where the contribution arrives",
        minimum=-1,
    )


def _add_bounds_of_groups(options: OptionRegistry) -> None:
    from fcp_core.aggregation.configuration import GROUP_BY_URI
    from fcp_core.aggregation.group_by import DEFAULT_MAX_GROUPS, MAX_BYTES, MAX_GROUPS

    options.add(
        f"aggregator.{GROUP_BY_URI}",
        MAX_GROUPS,
        type="int",
        default=DEFAULT_MAX_GROUPS,
        help="how many groups there may be: the task ends with what it has; 0: as many as come",
        minimum=0,
    )
    options.add(
        f"aggregator.{GROUP_BY_URI}",
        MAX_BYTES,
        type="bytes",
        default="1GiB",
        help="how much memory the groups may take, estimated; 0: as much as they take",
        minimum=0,
    )
