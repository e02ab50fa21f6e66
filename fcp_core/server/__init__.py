"""The HTTP server."""

from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread

__all__ = ["Server", "ServerThread"]
