"""The server for the Federated Compute protocol: protocol, aggregation, rounds, server, client."""
