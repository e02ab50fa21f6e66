"""Secure aggregation: the server sees sums of what devices contribute, and nothing else of it.

The protocol is the one of the published Federated Compute client: four rounds, pairwise masks that
cancel in the sum, and shares of keys with which the survivors take off the masks of those who
dropped out. ``server`` and ``client`` are machines without input or output; ``protocol`` and
``device`` put them on the seam for aggregation protocols of fcp-server.
"""
