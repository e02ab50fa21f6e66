"""The state machines of tasks, assignments, device sessions and waiting devices, and contracts."""
