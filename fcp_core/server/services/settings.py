"""The options of the configuration that the services go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcp_core.server.urls import checked_url

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
    :param max_in_flight: how many bytes of uploads may wait to be submitted or folded.
    :param max_sessions: how many device sessions are kept, late ones among them.
    :param max_operations: how many devices may wait for a task.
    :param resource_cache: how many bytes are kept of what devices download from the storage.
    :param download_prefix: what stands in front of ``data/`` in the addresses of downloads; ``""``
        is where devices reach the server.
    """

    session_timeout: float
    max_in_flight: int
    max_sessions: int
    max_operations: int
    resource_cache: int
    download_prefix: str

    @classmethod
    def from_config(cls, config: Config) -> Settings:
        """Read the settings.

        :raises UsageError: if the prefix of downloads is no address.
        """
        prefix = config.get("download_prefix")
        return cls(
            session_timeout=config.get("session_timeout"),
            max_in_flight=config.get("max_in_flight"),
            max_sessions=config.get("max_sessions"),
            max_operations=config.get("max_operations"),
            resource_cache=config.get("resource_cache"),
            download_prefix="" if prefix is None else checked_url(prefix, "download_prefix"),
        )
