"""The server for the Federated Compute protocol: protocol, aggregation, rounds, server, client."""

from fcp_core import moved

moved.install()
