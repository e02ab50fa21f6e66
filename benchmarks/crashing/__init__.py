"""Crash tests: a simulation of a server with faults, and real kills of real processes."""
