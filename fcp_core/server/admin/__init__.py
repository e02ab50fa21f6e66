"""The HTTP skin of the admin API."""
