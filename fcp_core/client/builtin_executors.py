"""The executors that every client has."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from fcp_core.client.example_query import ExampleQueryExecutor
from fcp_core.client.executors import PlanExecutor
from fcp_core.client.graph_guard import OperationRules
from fcp_core.client.python_tasks import PythonTaskExecutor
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_core.protocol import python_plan


def default_executors(rules: OperationRules | None = None) -> Mapping[str, PlanExecutor]:
    """Return the built-in executors by plan kind: the name of the plan's ``spec`` field.

    Plans of Python tasks set none; their kind is ``python_task``.

    They are shared within the process, so that clients that run one TensorFlow plan import its
    graph once. TensorFlow itself is imported when the first such plan arrives.

    :param rules: which operations a TensorFlow plan may use; None: the usual ones.
    """
    return _executors(rules or OperationRules())


@functools.cache
def _executors(rules: OperationRules) -> Mapping[str, PlanExecutor]:
    return {
        "example_query_spec": ExampleQueryExecutor(),
        python_plan.KIND: PythonTaskExecutor(),
        "tensorflow_spec": TensorFlowExecutor(rules=rules),
    }
