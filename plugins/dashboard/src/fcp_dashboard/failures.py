"""Groups the failures of devices: alike are those of one phase, code and form of message."""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache

from fcp_core.rounds.events import Dropped
from fcp_dashboard.facts import ErrorGroup

#: How many groups there are; the one that was quiet longest goes first.
GROUPS = 300
#: How many versions are told apart in one.
_VERSIONS = 20

_VARIES = (
    (re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,}){0,4}\b"), "*"),
    (re.compile(r"'[^']*'|\"[^\"]*\""), "'*'"),
    (re.compile(r"\d+(?:\.\d+)?"), "*"),
)


@lru_cache(maxsize=1024)
def shape_of(message: str) -> str:
    """Return a message without what differs from device to device: numbers, names, hashes."""
    for pattern, instead in _VARIES:
        message = pattern.sub(instead, message)
    return message[:300]


class Failures:
    """The failures of one member's devices."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, ...], ErrorGroup] = OrderedDict()

    def take(self, event: Dropped, version: str) -> None:
        """Count a failure."""
        message = event.message[:300]
        shape = shape_of(message)
        where = (event.population, event.task_name, event.phase, event.code.name)
        group = self._groups.pop((*where, shape), None)
        if group is None:
            group = ErrorGroup(*where, shape, message, 0, event.at, event.at)
            group.versions = {}
        self._groups[(*where, shape)] = group
        group.count += 1
        group.last = event.at
        if version in group.versions or len(group.versions) < _VERSIONS:
            group.versions[version] = group.versions.get(version, 0) + 1
        if len(self._groups) > GROUPS:
            self._groups.popitem(last=False)

    def all(self) -> list[ErrorGroup]:
        """Return the groups, the most frequent first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)
