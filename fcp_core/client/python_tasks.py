"""Runs Python tasks: callables that the device's owner registered, in any framework or none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fcp_core.client.executors import InsufficientDataError, PlanExecutor, PlanRun
from fcp_core.errors import UsageError, plugin_errors
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.python_plan import PythonPlan
from fcp_core.protocol.status import Code, StatusError

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

#: What is registered: gets the arrays by name, the examples and the settings; returns arrays by
#: name and the weight with which they count.
TaskFunction: TypeAlias = Callable[[Arrays, "Examples", Mapping[str, Any]], tuple[Arrays, float]]

F = TypeVar("F", bound=TaskFunction)

_registered: dict[str, TaskFunction] = {}
_lock = threading.Lock()


def task(name: str) -> Callable[[F], F]:
    """Register a callable, for all clients of this process, under the name that tasks call it by.

    Nothing else can be called: a server names what to run, it never sends code. ::

        @task("train")
        def train(arrays, examples, settings):
            weights = arrays["weights"].copy()
            for example in examples:
                ...
            return {"weights": weights}, number_of_examples

    The arrays are read-only. The examples can be gone through more than once. A weight of zero or
    less says that the device has too little data.

    :raises UsageError: when it is applied, if another callable has the name.
    """

    def register(function: F) -> F:
        with _lock:
            known = _registered.setdefault(name, function)
        if known is not function:
            raise UsageError(
                f"two callables want to be the task {name!r}: {known!r} and {function!r}; "
                "give one of them another name."
            )
        return function

    return register


class Examples:
    """The examples of a task's collection, serialized; each pass asks the store anew."""

    def __init__(self, run: PlanRun, collection_uri: str) -> None:
        self._run = run
        self._selector = plan_pb2.ExampleSelector(collection_uri=collection_uri)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the examples.

        :raises StatusError: CANCELLED if the client was interrupted; and as the store raises it.
        """
        for example in self._run.store.examples(self._selector):
            self._run.interruption.check()
            yield example


class PythonTaskExecutor(PlanExecutor):
    """Calls what a plan names, and contributes what it returns.

    :param tasks: by name; None: those that :func:`task` registered.
    """

    def __init__(self, tasks: Mapping[str, TaskFunction] | None = None) -> None:
        self._tasks = _registered if tasks is None else dict(tasks)

    def run(self, run: PlanRun) -> bytes:
        """Run the task.

        :raises StatusError: UNIMPLEMENTED if nothing is registered under the name, INTERNAL if the
            callable raises, INVALID_ARGUMENT if it returns something else than was asked for.
        """
        plan = PythonPlan.of(run.plan)
        function = self._tasks.get(plan.task)
        if function is None:
            known = ", ".join(sorted(self._tasks)) or "none"
            raise StatusError(
                Code.UNIMPLEMENTED,
                f"no Python task {plan.task!r} is registered here; there is {known}",
            )
        arrays: Arrays = {}
        if run.checkpoint:
            checkpoint = open_checkpoint(run.checkpoint)
            arrays = {name: checkpoint.get_tensor(name) for name in checkpoint.names()}
        try:
            answer = function(arrays, Examples(run, plan.collection_uri), plan.settings)
        except StatusError:
            raise
        except plugin_errors() as error:
            run.interruption.check()
            raise StatusError(
                Code.INTERNAL, f"the Python task {plan.task!r} raised {error!r}"
            ) from error
        run.interruption.check()
        return _contribution(plan, answer)


def _contribution(plan: PythonPlan, answer: Any) -> bytes:
    """Check what a task returned, and write it."""
    try:
        returned, weight = answer
        returned, weight = dict(returned), float(weight)
    except (TypeError, ValueError):
        raise _bad(
            plan, f"returned {type(answer).__name__}, not (arrays by name, weight)"
        ) from None
    if not weight > 0 or not np.isfinite(weight):
        raise InsufficientDataError(
            f"the Python task {plan.task!r} gave its result the weight {weight:g}"
        )
    if set(returned) != set(plan.outputs):
        raise _bad(plan, f"returned {sorted(returned)}; {sorted(plan.outputs)} are wanted")
    tensors: dict[str, npt.NDArray[Any]] = {plan.weight: np.asarray(weight, dtype=np.float64)}
    for name, (dtype, shape) in plan.outputs.items():
        value = np.asanyarray(returned[name])
        if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
            raise _bad(plan, f"returned {name!r} as an array of which a part is masked: fill it")
        value = np.asarray(value)
        if not np.can_cast(value.dtype, dtype, "same_kind") or not _fits(value.shape, shape):
            raise _bad(
                plan,
                f"returned {name!r} as {value.dtype}{list(value.shape)}; "
                f"{dtype}{list(shape)} is wanted",
            )
        tensors[f"update/{name}"] = np.ascontiguousarray(value, dtype=dtype).reshape(value.shape)
    return write_checkpoint(tensors, "federated_compute")


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, got) for got, want in zip(shape, wanted, strict=True)
    )


def _bad(plan: PythonPlan, what: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"the Python task {plan.task!r} {what}")
