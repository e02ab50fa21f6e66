"""A dashboard of a server: what devices, tasks and members do, in a browser or a terminal."""
