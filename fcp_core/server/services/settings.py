"""The settings of the services: what is no option, and those that are, under their earlier name."""

from __future__ import annotations

from fcp_core.plugins.settings import ServerSettings as Settings

__all__ = ["OPERATION_RETENTION", "RETENTION", "Settings"]

#: Seconds for which a request that comes too late is still recognised, and answered ABORTED
#: (come back soon) instead of NOT_FOUND or UNAUTHENTICATED.
RETENTION = 3600.0

#: Seconds for which an operation can be asked for after it is done.
OPERATION_RETENTION = 600.0
