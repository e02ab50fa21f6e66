"""Traces of device sessions and tasks for OpenTelemetry."""
