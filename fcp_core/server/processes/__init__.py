"""Several processes that serve as one: one decides, all receive and accumulate."""
