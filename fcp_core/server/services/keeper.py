"""What members have of the services: see ``members``."""

from __future__ import annotations

from typing import Protocol


class Keeper(Protocol):
    """What takes populations, and leaves them."""

    async def take(self, population: str) -> None:
        """Read what the storage holds of a population, and act for it."""
        ...

    async def leave(self, population: str, *, saved: bool) -> None:
        """Stop to act for a population; *saved*: and write what is only in memory."""
        ...

    async def settled(self, population: str, timeout: float) -> None:
        """Wait until no contribution is on its way, at most so many seconds."""
        ...
