"""Which processors the processes of a server run on.

Left to themselves, the threads of two processes on two processors change places, and each takes the
other's data out of its cache: measured, that costs a tenth of the processor time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def shares(processes: int) -> Sequence[frozenset[int]]:
    """Return the processors of each process, as many as can be to each.

    :returns: nothing if there are more processes than processors, or the system does not say.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    usable = sorted(os.sched_getaffinity(0))
    if processes > len(usable):
        return ()
    return [frozenset(usable[number::processes]) for number in range(processes)]


@contextmanager
def on_processors(share: frozenset[int]) -> Iterator[None]:
    """Have this thread, and those that it starts, run on these processors only.

    :param share: none: on any.
    """
    if not share:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
