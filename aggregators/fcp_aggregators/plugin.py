"""The built-in aggregators, protocol and engine, registered like anybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcp_aggregators import group_by, mean, median, secure_sum, simple_protocol, vector
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import make_local_engine
from fcp_core.plugins import hookimpl
from fcp_core.rounds.protocols import AggregationProtocolFactory

if TYPE_CHECKING:
    from fcp_core.plugins.config import OptionRegistry

fcp_api_version = 1


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of the secure sums, the simple protocol and the local engine."""
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
