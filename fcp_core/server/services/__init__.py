"""The services behind the protocol's calls, without HTTP."""

from fcp_core.server.services.app import Services
from fcp_core.server.services.downloads import Download

__all__ = ["Download", "Services"]
