"""Differential privacy for fcp-server: mechanisms, noise and the ledger of what was spent."""
