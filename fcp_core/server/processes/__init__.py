"""Several processes, or members, of one server: one decides, all receive and accumulate."""
