"""The built-in aggregators."""
