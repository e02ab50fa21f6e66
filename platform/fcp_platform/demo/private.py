"""The demonstration with differential privacy: noise, ledger, and TFF's own noise beside it."""

from __future__ import annotations

from typing import Any

from fcp_core.plugins.manager import Plugins
from fcp_platform.demo.settings import DELTA, POPULATION, Settings

_PLUGIN = "fcp_privacy.plugin:PrivacyPlugin"


class Private:
    """What ``--privacy`` adds to the program.

    :param settings: of the demonstration, with an epsilon.
    """

    def __init__(self, settings: Settings) -> None:
        from fcp_privacy.accounting import epsilon_rho, rho_multiplier

        assert settings.privacy is not None
        self._settings, self._epsilon = settings, settings.privacy
        storage = settings.folder / "fcp.sqlite"
        self._ledger = {
            "plugins": [_PLUGIN],
            "storage": "sqlite",
            "storage.sqlite.path": str(storage),
            # A hair more than what is spent, for the last digit of a sum of rounds.
            "privacy.epsilon": self._epsilon * (1 + 1e-9),
            "privacy.delta": DELTA,
        }
        for name in (storage.name, f"{storage.name}-wal", f"{storage.name}-shm"):
            storage.with_name(name).unlink(missing_ok=True)
        #: Of the noise in each round, with all rounds together within epsilon.
        self.noise_multiplier = rho_multiplier(epsilon_rho(self._epsilon, DELTA) / settings.rounds)

    def config(self) -> dict[str, Any]:
        """Return the server's configuration: the aggregator, its noise, the budget, a ledger."""
        return {
            **self._ledger,
            "aggregator": ["dp_gaussian"],
            "aggregator.dp_gaussian.clip": self._settings.clip,
            "aggregator.dp_gaussian.noise_multiplier": self.noise_multiplier,
        }

    def simulated_aggregator(self) -> Any:
        """Return TFF's own factory with the same clip and noise."""
        import tensorflow_federated as tff
        import tensorflow_privacy as tfp  # type: ignore[import-untyped]

        clip = self._settings.clip
        query = tfp.GaussianSumQuery(clip, clip * self.noise_multiplier)
        return tff.aggregators.DifferentiallyPrivateFactory(query, tff.aggregators.SumFactory())

    async def spent(self) -> float:
        """Return the epsilon that the ledger has booked, as ``fcp privacy show`` reads it."""
        from fcp_privacy.books import read_books
        from fcp_privacy.ledger import PrivacyLedger

        plugins = Plugins.load(overrides=self._ledger)
        upkeep = plugins.make_storage().upkeep()
        assert upkeep is not None  # SQLite has one
        books = await read_books(upkeep, PrivacyLedger(plugins.config), POPULATION)
        return sum(account.spent for account in books.accounts)
