"""Keeps the records of a server in PostgreSQL, for servers on several hosts."""
