"""State machines of tasks, device sessions, assignments and aggregation sessions."""
