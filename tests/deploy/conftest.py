"""Servers and devices for the tests of deployments."""

from fcp_core.testing.pytest_plugin import fcp_client, fcp_server  # noqa: F401
