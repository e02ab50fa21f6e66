"""Who may check in, and how often."""
