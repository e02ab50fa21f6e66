"""Does the heavy work of a server on a Dask cluster."""
