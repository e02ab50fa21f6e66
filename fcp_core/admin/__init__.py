"""The admin API: its messages, its calls, its description and a client."""

from fcp_core.admin.client import AdminClient

__all__ = ["AdminClient"]
