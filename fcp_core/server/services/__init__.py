"""The services behind the protocol's calls, without HTTP."""

from fcp_core.server.services.published import Download
from fcp_core.server.services.wiring import Services

__all__ = ["Download", "Services"]
