"""The names of the aggregation protocol contract of 0.1, so that a plugin written for it is named.

Such a plugin can be imported, and is refused when it registers, with what to change: the contract
is in ``fcp_core.rounds.protocols`` now. This module goes with the release after the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_EFFECTS = ("FoldEffect", "FetchEffect", "ReportEffect", "AbortFoldEffect", "Effect")


class AggregationProtocol:
    """The base of a protocol machine of 0.1."""


@dataclass(frozen=True)
class AggregationProtocolFactory:
    """What a plugin registered in 0.1."""

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], Any]


def __getattr__(name: str) -> Any:
    if name in _EFFECTS:
        return type(name, (), {})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
