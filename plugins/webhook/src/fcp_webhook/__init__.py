"""Posts events to a webhook."""
