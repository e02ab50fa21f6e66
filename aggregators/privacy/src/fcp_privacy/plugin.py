"""The plugin: the aggregators with noise, and the ledger."""

from __future__ import annotations

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.rounds.ledger import Ledger
from fcp_privacy import group_by, policy
from fcp_privacy.ledger import PrivacyLedger


class PrivacyPlugin:
    """The plugin of one server."""

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""
        policy.add_options(options)
        group_by.add_options(options)

    @hookimpl
    def fcp_register_aggregators(self) -> list[AggregatorFactory]:
        """Offer the aggregators."""
        return [group_by.DP_GROUP_BY]

    @hookimpl
    def fcp_register_ledgers(self, config: Config) -> list[Ledger]:
        """Offer the ledger."""
        return [PrivacyLedger(config)]
