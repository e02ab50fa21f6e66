"""Hooks, the plugin manager and the configuration."""

from fcp_core.plugins.hookspecs import API_VERSION, hookimpl

__all__ = ["API_VERSION", "hookimpl"]
