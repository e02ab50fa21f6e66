"""Session shapes: the way of a device session as a short string, counted by client version.

The paper on Google's system of 2019 counts them ("Towards Federated Learning at Scale: System
Design", table 1) and finds broken releases by them: a version whose sessions suddenly end in ``!``.
"""

from __future__ import annotations

from collections import Counter

from fcp_dashboard.facts import Shape

#: What each sign says.
SIGNS = (
    ("-", "checked in"),
    ("v", "was given a task"),
    ("[", "began to compute"),
    ("]", "had a result"),
    ("+", "began to upload"),
    ("^", "contributed"),
    ("#", "its upload was refused, or came too late"),
    ("!", "was interrupted, or gave up"),
    (".", "the task ended before it was done"),
)

TURNED_AWAY = "-"
CONTRIBUTED = "-v[]+^"

#: As far as a device came, by the stage of its assignment.
_REACHED = {
    "assigned": "-v[",
    "started": "-v[]",
    "uploading": "-v[]+",
    "uploaded": "-v[]+",
    "kept": "-v[]+",
    "queued": "-v[]+",
    "accumulating": "-v[]+",
}
#: From these on the whole upload is there.
_UPLOADED = frozenset({"uploaded", "kept", "queued", "accumulating"})
#: So many combinations are counted; the others as ``other``.
_MOST = 2_000


def shape_of_drop(reached: str, phase: str) -> str:
    """Return the shape of a session whose device did not contribute.

    :param reached: the stage of its assignment.
    :param phase: why it ended; a device that was silent was not heard of again.
    """
    shape = _REACHED.get(reached, "-v")
    if phase == "silent":
        return shape
    return shape + ("#" if reached in _UPLOADED else "!")


def shape_of_late(reached: str) -> str:
    """Return the shape of a session of which nothing more was needed."""
    return _REACHED.get(reached, "-v") + ("#" if reached in _UPLOADED else ".")


class Shapes:
    """Counts shapes by population and version."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def count(self, population: str, version: str, shape: str) -> None:
        """Count a session."""
        key = (population, version or "unknown", shape)
        if len(self._counts) >= _MOST and key not in self._counts:
            key = ("other", "other", shape)
        self._counts[key] += 1

    def all(self) -> list[Shape]:
        """Return the counts, the largest first."""
        return [Shape(*key, count) for key, count in self._counts.most_common()]
