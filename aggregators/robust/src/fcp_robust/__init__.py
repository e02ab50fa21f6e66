"""Robust aggregators for fcp-server."""
