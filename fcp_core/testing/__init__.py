"""What a plugin author tests with: kits, a server and devices for pytest, the policy lab.

Nothing is imported before it is used: the kits need the packages of the ``testing`` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fcp_core.errors import MissingExtraError

if TYPE_CHECKING:
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
    from fcp_core.testing.simulation import simulate
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
    "AggregationProtocolConformance": "protocols",
    "AggregatorConformance": "aggregators",
    "EligibilityPolicyConformance": "eligibility",
    "EngineConformance": "engines",
    "EventLog": "servers",
    "RunningServer": "servers",
    "SelectionPolicyConformance": "selection",
    "StorageConformance": "storage",
    "make_device": "servers",
    "query_task": "servers",
    "run_devices": "servers",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name in ("pytest", "hypothesis"):
            raise MissingExtraError(f"{__name__}.{name}", "testing") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
