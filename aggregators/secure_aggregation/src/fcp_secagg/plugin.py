"""The plugin: the protocol, its options and its aggregator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.plugins import hookimpl
from fcp_core.rounds.protocols import AggregationProtocol, AggregationProtocolFactory
from fcp_secagg import sums
from fcp_secagg.aggregands import URIS, problems_of
from fcp_secagg.states import ABORT, SERVICE

# The cryptography, and the device, are imported when they are needed: the command line looks at
# every plugin.
if TYPE_CHECKING:
    from fcp_core.client.protocols import DeviceProtocol
    from fcp_core.plugins.config import OptionRegistry
    from fcp_core.rounds.tasks import TaskSpec

fcp_api_version = 1


def check(spec: TaskSpec, options: Mapping[str, Any]) -> list[str]:
    """Say why a task cannot be done with these options, a sentence each."""
    from fcp_secagg.settings import Settings

    chosen = Settings.of(options)
    problems = chosen.problems(spec.goal_count, spec.max_at_work)
    sizes = [] if problems else [chosen.cohort]
    return problems + problems_of(spec.aggregation, sizes)


def _make(options: Mapping[str, Any]) -> AggregationProtocol:
    from fcp_secagg.protocol import SecureAggregation

    return SecureAggregation(options)


def _device() -> DeviceProtocol:
    from fcp_secagg.device import SecureAggregationDevice

    return SecureAggregationDevice()


FACTORY = AggregationProtocolFactory(
    "secagg",
    "secure aggregation: the server sees sums of cohorts, and nothing else of what they hold",
    _make,
    services=(SERVICE,),
    aborting=(ABORT,),
    check=check,
    aggregators=dict.fromkeys(URIS, sums.NAME),
    device=_device,
)


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the protocol's options."""
    from fcp_secagg import settings

    settings.add_options(options)


@hookimpl
def fcp_register_aggregation_protocols() -> list[AggregationProtocolFactory]:
    """Return the protocol."""
    return [FACTORY]


@hookimpl
def fcp_register_aggregators() -> list[AggregatorFactory]:
    """Return what takes the sums of cohorts."""
    return [sums.FACTORY, sums.MEDIAN_FACTORY, sums.TRIMMED_FACTORY]
