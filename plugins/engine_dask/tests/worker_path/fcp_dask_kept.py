"""An aggregator for the tests that keeps every value, and reports their sum and its process."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory
from fcp_core.plugins import hookimpl


class Kept(Accumulator):
    """Reports the sum of all values, and the id of the process that reports."""

    def __init__(self, intrinsic, values=()):
        self._values = list(values)

    @property
    def num_inputs(self):
        return len(self._values)

    def validate(self, inputs):
        pass

    def accumulate(self, inputs):
        self._values.append(int(inputs[0].sum()))

    def merge(self, other):
        self._values += other._values

    def report(self):
        return [np.array([sum(self._values), os.getpid()], np.int64)]

    def dump(self):
        return np.array(self._values, np.int64).tobytes()


def make(intrinsic, options):
    return Kept(intrinsic)


def load(intrinsic, options, data):
    return Kept(intrinsic, np.frombuffer(data, np.int64).tolist())


KEPT = AggregatorFactory(
    "kept_sum", frozenset({"kept_sum"}), "keeps and adds", make, load, needs_all_inputs=True
)

#: The same, as one that keeps nothing and computes much.
HEAVY = replace(
    KEPT,
    name="heavy_sum",
    uris=frozenset({"heavy_sum"}),
    needs_all_inputs=False,
    heavy_report=True,
)


@hookimpl
def fcp_register_aggregators():
    return [KEPT]


def die(arguments):
    """End the process that runs it, as the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def here(arguments):
    """Return the arguments, where this module is."""
    return arguments
