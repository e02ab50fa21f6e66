"""A lottery for fcp-server."""
