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
    """Times in seconds; each is the option of ``[fcp]`` with the same name.

    :param max_in_flight: how many bytes of uploads are held until they are submitted.
    """

    polling_interval: float
    session_timeout: float
    assignment_timeout: float
    task_deadline: float
    task_retention: float
    over_selection: float
    max_in_flight: int

    @classmethod
    def from_config(cls, config: Config) -> Settings:
        """Read the settings."""
        return cls(
            polling_interval=config.get("polling_interval"),
            session_timeout=config.get("session_timeout"),
            assignment_timeout=config.get("assignment_timeout"),
            task_deadline=config.get("task_deadline"),
            task_retention=config.get("task_retention"),
            over_selection=config.get("over_selection"),
            max_in_flight=config.get("max_in_flight"),
        )
