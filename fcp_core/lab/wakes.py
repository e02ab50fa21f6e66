"""The next check-in of up to a million devices: an array, sorted a short span at a time."""

from __future__ import annotations

import heapq

import numpy as np

from fcp_core.lab.draws import Ints

#: The step of a device that does not wait for its time: it is at work, or holds.
NEVER = 2**62


class Wakes:
    """The step at which each device checks in.

    :param steps: the first ones.
    :param span: how many steps are sorted at a time. A device that is put back into the span that
        is being worked on costs more, so it should not be longer than the shortest retry.
    """

    def __init__(self, steps: Ints, span: int) -> None:
        self._next = steps
        self._span = span
        self._end = 0
        self._devices: Ints = np.empty(0, np.int64)
        self._steps: Ints = np.empty(0, np.int64)
        self._position = 0
        self._heap: list[tuple[int, int]] = []
        self._first = 0

    def peek(self, limit: int) -> int:
        """Return the step of the next check-in, or NEVER if there is none before *limit*."""
        while True:
            step = self._heap[0][0] if self._heap else NEVER
            if self._position < len(self._devices):
                step = min(step, self._first)
            if step < limit:
                return step
            if self._end >= limit or step < NEVER:
                return NEVER
            self._load()

    def take(self, until: int) -> tuple[Ints, Ints]:
        """Take out the devices that check in up to step *until*, in the span of the next one.

        :returns: devices and steps, sorted by step and then by device.
        """
        begin = self._position
        end = begin + int(np.searchsorted(self._steps[begin:], until, "right"))
        self._position = end
        devices, steps = self._devices[begin:end], self._steps[begin:end]
        if end < len(self._steps):
            self._first = int(self._steps[end])
        early = []
        while self._heap and self._heap[0][0] <= until:
            early.append(heapq.heappop(self._heap))
        if early:
            devices = np.concatenate([devices, np.array([d for _, d in early], np.int64)])
            steps = np.concatenate([steps, np.array([s for s, _ in early], np.int64)])
            order = np.lexsort((devices, steps))
            devices, steps = devices[order], steps[order]
        self._next[devices] = NEVER
        return devices, steps

    def put_all(self, devices: Ints, steps: Ints) -> None:
        """Set when devices check in next."""
        self._next[devices] = steps
        for index in np.flatnonzero(steps < self._end):
            heapq.heappush(self._heap, (int(steps[index]), int(devices[index])))

    def put(self, device: int, step: int) -> None:
        """Set when a device checks in next."""
        self._next[device] = step
        if step < self._end:
            heapq.heappush(self._heap, (step, device))

    def _load(self) -> None:
        self._end += self._span
        devices = np.flatnonzero(self._next < self._end)
        steps = self._next[devices]
        order = np.argsort(steps, kind="stable")
        self._devices, self._steps, self._position = devices[order], steps[order], 0
        if len(devices):
            self._first = int(self._steps[0])
