"""What the TFF platform adds to a server: the aggregator of ``federated_aggregate``."""

from __future__ import annotations

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.plugins.hookspecs import hookimpl
from fcp_platform import aggregate

fcp_api_version = 1


@hookimpl
def fcp_register_aggregators() -> list[AggregatorFactory]:
    """Return the aggregator of ``federated_aggregate``."""
    return [aggregate.FACTORY]
