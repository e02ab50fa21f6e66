"""What the server does for each call, behind HTTP."""
