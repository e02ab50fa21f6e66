"""What selection policies keep, in storage: a limit over a day holds over a restart too."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from fcp_core.rounds.clock import Clock
from fcp_core.server.services.journal import Journal
from fcp_core.storage.records import PolicyStateRecord

logger = logging.getLogger("fcp.services")

#: Seconds after which a state that was not written again is forgotten.
LIFETIME = 30 * 86400.0


class PolicyStates:
    """Reads and writes the states of policies; each belongs to a population and a group of tasks.

    They are written behind the decisions: a crash can lose the last of them.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._loaded: dict[str, bytes] = {}

    def load(self, records: Iterable[PolicyStateRecord]) -> None:
        """Take up what an earlier run left; what is too old is deleted."""
        oldest = self._clock.now() - LIFETIME
        for record in records:
            if record.saved < oldest:
                self._journal.delete(PolicyStateRecord, record.key)
            else:
                self._loaded[record.key] = record.state

    def get(self, population: str, group: str) -> Any:
        """Return what an earlier run's policy kept; None if nothing."""
        state = self._loaded.pop(_key(population, group), None)
        return None if state is None else msgspec.json.decode(state)

    def put(self, population: str, group: str, state: Any) -> None:
        """Write a state soon."""
        try:
            data = msgspec.json.encode(state)
        except (TypeError, ValueError, OverflowError) as error:
            logger.error(
                "population %s: what a selection policy keeps is no JSON: %s", population, error
            )
            return
        key = _key(population, group)
        self._journal.put(PolicyStateRecord(key, population, data, self._clock.now()))


def _key(population: str, group: str) -> str:
    return hashlib.sha256(f"{population}\0{group}".encode()).hexdigest()
