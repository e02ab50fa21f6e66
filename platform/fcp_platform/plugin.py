"""What the TFF platform adds: the aggregator of ``federated_aggregate``, and ``fcp demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fcp_core.plugins.hookspecs import hookimpl
from fcp_platform.demo.command import demo

if TYPE_CHECKING:
    from fcp_core.aggregation.aggregator import AggregatorFactory

fcp_api_version = 1


@hookimpl
def fcp_register_aggregators() -> list[AggregatorFactory]:
    """Return the aggregator of ``federated_aggregate``."""
    from fcp_platform import aggregate

    return [aggregate.FACTORY]


@hookimpl
def fcp_register_commands() -> list[click.Command]:
    """Return ``fcp demo``."""
    return [demo]
