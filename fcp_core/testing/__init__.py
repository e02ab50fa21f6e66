"""What a plugin author tests with: kits, a server and devices for pytest, the policy lab.

Nothing is imported before it is used: the kits need the packages of the ``testing`` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fcp_core.errors import MissingExtraError

if TYPE_CHECKING:
    from fcp_core.lab import simulate
    from fcp_core.testing.aggregators import AggregatorConformance
    from fcp_core.testing.eligibility import EligibilityPolicyConformance
    from fcp_core.testing.engines import EngineConformance
    from fcp_core.testing.protocols import AggregationProtocolConformance
    from fcp_core.testing.selection import SelectionPolicyConformance
    from fcp_core.testing.servers import (
        EventLog,
        RunningServer,
        make_device,
        query_task,
        run_devices,
    )
    from fcp_core.testing.storage import StorageConformance

__all__ = [
    "AggregationProtocolConformance",
    "AggregatorConformance",
    "EligibilityPolicyConformance",
    "EngineConformance",
    "EventLog",
    "RunningServer",
    "SelectionPolicyConformance",
    "StorageConformance",
    "make_device",
    "query_task",
    "run_devices",
    "simulate",
]

_MODULES = {
    "AggregationProtocolConformance": "fcp_core.testing.protocols",
    "AggregatorConformance": "fcp_core.testing.aggregators",
    "EligibilityPolicyConformance": "fcp_core.testing.eligibility",
    "EngineConformance": "fcp_core.testing.engines",
    "EventLog": "fcp_core.testing.servers",
    "RunningServer": "fcp_core.testing.servers",
    "SelectionPolicyConformance": "fcp_core.testing.selection",
    "StorageConformance": "fcp_core.testing.storage",
    "make_device": "fcp_core.testing.servers",
    "query_task": "fcp_core.testing.servers",
    "run_devices": "fcp_core.testing.servers",
    "simulate": "fcp_core.lab",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if error.name in ("pytest", "hypothesis"):
            raise MissingExtraError(f"{__name__}.{name}", "testing") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
