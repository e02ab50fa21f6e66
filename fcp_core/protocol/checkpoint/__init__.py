"""The two checkpoint formats, in NumPy alone."""
