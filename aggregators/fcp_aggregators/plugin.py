"""The built-in aggregators, registered like anybody's."""
