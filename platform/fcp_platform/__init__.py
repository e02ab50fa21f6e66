"""The TFF federated program platform.

A federated program (``tff.program``) runs its computations on devices with these names::

    FederatedComputation, FederatedContext, FederatedDataSource, LocalServer, RemoteServer

Importing the package is cheap: TensorFlow Federated is imported with the first name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fcp_core.errors import MissingExtraError
from fcp_platform import nesting

if TYPE_CHECKING:
    from fcp_platform.computation import FederatedComputation
    from fcp_platform.context import AggregationFailedError, FederatedContext
    from fcp_platform.data_source import DataSelectionConfig, FederatedDataSource
    from fcp_platform.notebook import plot, progress
    from fcp_platform.references import CheckpointTensorReference
    from fcp_platform.servers import LocalServer, RemoteServer

_MODULES = {
    "AggregationFailedError": "context",
    "CheckpointTensorReference": "references",
    "DataSelectionConfig": "data_source",
    "FederatedComputation": "computation",
    "FederatedContext": "context",
    "FederatedDataSource": "data_source",
    "LocalServer": "servers",
    "RemoteServer": "servers",
    "plot": "notebook",
    "progress": "notebook",
}

__all__ = [
    "AggregationFailedError",
    "CheckpointTensorReference",
    "DataSelectionConfig",
    "FederatedComputation",
    "FederatedContext",
    "FederatedDataSource",
    "LocalServer",
    "RemoteServer",
    "plot",
    "progress",
]


nesting.install()


def __getattr__(name: str) -> Any:
    """Import what is asked for.

    :raises MissingExtraError: if TensorFlow Federated is not installed.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("tensorflow", "tensorflow_federated"):
            raise
        raise MissingExtraError("the TFF platform", "tff") from error
    return getattr(module, name)
