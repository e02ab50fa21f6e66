"""The plan of a Python task: the name of a callable that the device's owner has registered.

It is a ``ClientOnlyPlan`` without a graph, whose phase has neither of the two specifications that
published clients know. What is to be run is said where a TensorFlow plan has its session
configuration: an ``Any`` of a type of its own, whose value is JSON. Published clients take a phase
without an example query for a TensorFlow one, find no TensorFlow specification in it, stop with
INVALID_ARGUMENT before they run anything, and report a failed computation (INTERNAL), which gives
the place to another device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError

#: What stands for a Python task where kinds of plans have names.
KIND = "python_task"

_TYPE_URL = "type.googleapis.com/fcp.server.PythonTask"
_VERSION = 1


@dataclass(frozen=True)
class PythonPlan:
    """What a device is asked to run.

    :param task: the name under which the callable is registered.
    :param settings: what it is given beside arrays and examples; JSON-able.
    :param collection_uri: the collection that the examples come from; empty: the store's own.
    :param outputs: the dtype, as NumPy names it, and the shape of each array to contribute; -1 is
        a dimension of any size.
    :param weight: the tensor that carries the weight.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    collection_uri: str = ""
    outputs: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    weight: str = "weight"

    def to_bytes(self) -> bytes:
        """Return the ``ClientOnlyPlan``.

        :raises ValueError: if the settings are not JSON-able.
        """
        plan = plan_pb2.ClientOnlyPlan()
        plan.phase.SetInParent()
        plan.tensorflow_config_proto.type_url = _TYPE_URL
        try:
            text = json.dumps(
                {
                    "version": _VERSION,
                    "task": self.task,
                    "settings": dict(self.settings),
                    "collection_uri": self.collection_uri,
                    "outputs": {n: [dtype, shape] for n, (dtype, shape) in self.outputs.items()},
                    "weight": self.weight,
                },
                sort_keys=True,
                allow_nan=False,
            )
        except TypeError as error:
            raise ValueError(f"the settings of task {self.task!r}: {error}") from None
        plan.tensorflow_config_proto.value = text.encode()
        return plan.SerializeToString(deterministic=True)

    @classmethod
    def of(cls, plan: plan_pb2.ClientOnlyPlan) -> PythonPlan:
        """Read a plan that :func:`is_python_plan` takes for one.

        :raises StatusError: INVALID_ARGUMENT if it is malformed, UNIMPLEMENTED for a later version.
        """
        try:
            read = json.loads(plan.tensorflow_config_proto.value)
            version = int(read["version"])
            if version == _VERSION:
                return cls(
                    task=str(read["task"]),
                    settings=dict(read["settings"]),
                    collection_uri=str(read["collection_uri"]),
                    outputs={
                        str(name): (str(dtype), tuple(int(size) for size in shape))
                        for name, (dtype, shape) in dict(read["outputs"]).items()
                    },
                    weight=str(read["weight"]),
                )
        except (ValueError, KeyError, TypeError) as error:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"the plan of a Python task is malformed: {error!r}"
            ) from error
        raise StatusError(
            Code.UNIMPLEMENTED, f"Python tasks of version {version}; this is for {_VERSION}"
        )


def is_python_plan(plan: plan_pb2.ClientOnlyPlan) -> bool:
    """Whether a plan is that of a Python task."""
    return (
        plan.phase.WhichOneof("spec") is None and plan.tensorflow_config_proto.type_url == _TYPE_URL
    )
