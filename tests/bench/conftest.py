"""Servers for the virtual devices."""

from fcp_core.testing.pytest_plugin import fcp_server  # noqa: F401
