"""The command line: every command; nothing else imports this package."""
