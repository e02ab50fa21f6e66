"""The options of the configuration that the services go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcp_core.plugins.config import Config

#: Seconds for which a request that comes too late is still recognised, and answered ABORTED
#: (come back soon) instead of NOT_FOUND or UNAUTHENTICATED.
RETENTION = 3600.0

#: Seconds for which an operation can be asked for after it is done.
OPERATION_RETENTION = 600.0


@dataclass(frozen=True)
class Settings:
    """What holds for the whole server; each is the option of ``[fcp]`` with the same name.

    :param session_timeout: in seconds.
    :param max_in_flight: how many bytes of uploads are held until they are submitted.
    """

    session_timeout: float
    max_in_flight: int

    @classmethod
    def from_config(cls, config: Config) -> Settings:
        """Read the settings."""
        return cls(
            session_timeout=config.get("session_timeout"),
            max_in_flight=config.get("max_in_flight"),
        )
