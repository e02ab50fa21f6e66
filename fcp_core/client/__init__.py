"""The device side: a client for any server that speaks the Federated Compute protocol."""

from __future__ import annotations

from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.client import Client, Clock, SystemClock
from fcp_core.client.executors import (
    InsufficientDataError,
    PlanExecutor,
    PlanRun,
    SliceSource,
)
from fcp_core.client.graph_guard import OperationRules
from fcp_core.client.history import History, RunRecord
from fcp_core.client.limits import Limits
from fcp_core.client.privacy import Acceptance, PrivacyPolicy
from fcp_core.client.protocols import DeviceProtocol, PlanResults
from fcp_core.client.python_tasks import PythonTaskExecutor, task
from fcp_core.client.results import Outcome, SessionResult, TaskOutcome, TaskResult
from fcp_core.client.sql_engine import SQLLimits
from fcp_core.client.sql_store import SQLStore
from fcp_core.client.stores import (
    CallableStore,
    CollectionStore,
    EmptyExamplesStore,
    ExampleDataStore,
    ExampleStore,
    TFRecordStore,
    make_query_result,
)
from fcp_core.client.tfrecord import read_tfrecord, write_tfrecord
from fcp_core.client.transport import RetryPolicy

__all__ = [
    "Acceptance",
    "CallableStore",
    "Client",
    "Clock",
    "CollectionStore",
    "DeviceProtocol",
    "EmptyExamplesStore",
    "ExampleDataStore",
    "ExampleStore",
    "History",
    "InsufficientDataError",
    "Limits",
    "OperationRules",
    "Outcome",
    "PlanExecutor",
    "PlanResults",
    "PlanRun",
    "PrivacyPolicy",
    "PythonTaskExecutor",
    "RetryPolicy",
    "RunRecord",
    "SQLLimits",
    "SQLStore",
    "SessionResult",
    "SliceSource",
    "SystemClock",
    "TFRecordStore",
    "TaskOutcome",
    "TaskResult",
    "default_executors",
    "make_query_result",
    "read_tfrecord",
    "task",
    "write_tfrecord",
]
