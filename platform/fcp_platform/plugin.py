"""What the TFF platform adds to a server and to the command line."""
