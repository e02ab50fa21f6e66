"""The TFF federated program platform."""
