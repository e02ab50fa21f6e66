"""The wire: messages, status codes, checkpoint formats. Imports nothing else of this project."""
