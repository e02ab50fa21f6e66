"""How contributions become an aggregate: the contracts, the protocol machine, the engine."""
