"""Python tasks as programs see them: arrays go out, their mean comes back. No TensorFlow.

    task = PythonTask("phones", "digits", "train", goal_count=10)
    for result in federated_averaging(task, arrays, rounds=10, run=run):
        arrays = result.arrays

The devices run the callable that their owner registered as ``train``; see
:func:`fcp_core.client.task`. ``run`` offers a task and returns its result: in the server's process
that is ``ServerThread.complete``; elsewhere an ``AdminClient`` submits, waits and gets the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.python_plan import PythonPlan
from fcp_core.rounds.specification import TaskSpec

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

#: How the devices' arrays of one name become one; only the first regards weights. A secure sum is
#: of integers from 0 to a largest one, for an aggregation protocol that hides all but sums.
Aggregation: TypeAlias = Literal["weighted_mean", "mean", "sum", "secure_sum"]

_URIS: Mapping[str, str] = {
    "weighted_mean": "federated_weighted_mean",
    "mean": "federated_mean",
    "sum": "federated_sum",
    "secure_sum": "federated_secure_sum",
}
_WEIGHT = "weight"
_DTYPES = {kind.numpy: kind for kind in DataType if kind is not DataType.STRING}


@dataclass(frozen=True)
class ArraySpec:
    """The dtype and the shape of an array; -1 is a dimension of any size.

    :param largest: for a secure sum: no element of a device's array is above it, or below 0.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    largest: int | None = None


@dataclass(frozen=True)
class Result:
    """The result of a round.

    :param arrays: by name, aggregated.
    :param weight: the sum of the devices' weights; NaN if it was not asked for.
    """

    arrays: Arrays
    weight: float


@dataclass(frozen=True)
class PythonTask:
    """What devices are asked to run, round after round.

    :param name: the task name that devices see.
    :param task: the name under which the devices' owner registered the callable.
    :param goal_count: how many devices' contributions complete a round.
    :param settings: what the callable is given beside arrays and examples; JSON-able.
    :param collection_uri: the collection that the examples come from; empty: the store's own.
    :param outputs: the arrays that devices return, by name; None: as those that they get.
    :param aggregation: how they become one; for all, or by name with the others as weighted means.
    :param more: further fields of the :class:`TaskSpec`, such as ``deadline``.
    :param sum_weights: whether the devices' weights are summed too. They have no bound, so a task
        with differential privacy says no, and has no weighted mean.
    """

    population: str
    name: str
    task: str
    goal_count: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    collection_uri: str = ""
    outputs: Mapping[str, ArraySpec] | None = None
    aggregation: Aggregation | Mapping[str, Aggregation] = "weighted_mean"
    more: Mapping[str, Any] = field(default_factory=dict)
    sum_weights: bool = True

    def to_spec(self, arrays: Arrays) -> TaskSpec:
        """Return one round.

        :param arrays: what devices get, by name.
        :raises UsageError: if an array, an output or an aggregation does not do.
        :raises StatusError: INVALID_ARGUMENT for a name or a count that no task may have.
        """
        given = {name: np.asanyarray(value) for name, value in arrays.items()}
        outputs = self.outputs
        if outputs is None:
            outputs = {name: ArraySpec(v.dtype.name, v.shape) for name, v in given.items()}
        aggregation = configuration_to_proto(self._intrinsics(outputs))
        plan = PythonPlan(
            task=self.task,
            settings=self.settings,
            collection_uri=self.collection_uri,
            outputs={name: (spec.dtype, spec.shape) for name, spec in outputs.items()},
            weight=_WEIGHT,
        )
        try:
            plan_bytes = plan.to_bytes()
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        spec = TaskSpec(
            population=self.population,
            name=self.name,
            plan=plan_bytes,
            checkpoint=write_checkpoint(given, "federated_compute") if given else b"",
            aggregation=aggregation.SerializeToString(deterministic=True),
            goal_count=self.goal_count,
            result_format="federated_compute",
            **self.more,
        )
        spec.check()
        return spec

    def decode(self, data: bytes) -> Result:
        """Return what the result of a round, a checkpoint, holds.

        :raises StatusError: INVALID_ARGUMENT if it is not the result of such a task.
        """
        checkpoint = open_checkpoint(data)
        names = [name for name in checkpoint.names() if name.startswith("result/")]
        return Result(
            arrays={name.partition("/")[2]: checkpoint.get_tensor(name) for name in names},
            weight=float(checkpoint.get_tensor(_WEIGHT)) if self.sum_weights else math.nan,
        )

    def _intrinsics(self, outputs: Mapping[str, ArraySpec]) -> list[Intrinsic]:
        if not outputs:
            raise UsageError(
                f"the task {self.name!r} has no outputs: devices would return nothing."
            )
        chosen = self.aggregation
        by_name: Mapping[str, str] = (
            dict.fromkeys(outputs, chosen) if isinstance(chosen, str) else chosen
        )
        unknown = sorted(set(by_name) - set(outputs))
        if unknown:
            raise UsageError(
                f"the task {self.name!r} aggregates {unknown[0]!r}, which is no output."
            )
        weight = TensorSpec(_WEIGHT, DataType.DOUBLE)
        # The sum of the weights tells how much the result rests on.
        intrinsics = [Intrinsic("federated_sum", (weight,), (weight,))] if self.sum_weights else []
        for name, spec in outputs.items():
            how = by_name.get(name, "weighted_mean")
            if how not in _URIS:
                raise UsageError(f"{name!r}: {how!r} is not one of {', '.join(_URIS)}.")
            if how == "weighted_mean" and not self.sum_weights:
                raise UsageError(f"{name!r}: a weighted mean needs sum_weights; say 'mean'.")
            value = TensorSpec(f"update/{name}", _data_type(name, spec, how), spec.shape)
            output = TensorSpec(f"result/{name}", value.dtype, spec.shape)
            inputs = (value, weight) if how == "weighted_mean" else (value,)
            bounds = _bounds(name, spec) if how == "secure_sum" else ()
            intrinsics.append(Intrinsic(_URIS[how], inputs, (output,), bounds))
        return intrinsics


def federated_averaging(
    task: PythonTask,
    arrays: Arrays,
    *,
    rounds: int,
    run: Callable[[TaskSpec], bytes],
) -> Iterator[Result]:
    """Yield the result of one round after another; each begins with the arrays of the one before.

    :param arrays: what the first round begins with; those that devices do not return stay.
    :param run: offers a round and returns its result as soon as it is there.
    :raises StatusError: why a round has no result.
    """
    current = dict(arrays)
    for _ in range(rounds):
        result = task.decode(run(task.to_spec(current)))
        current.update({n: v for n, v in result.arrays.items() if n in current})
        yield result


def _data_type(name: str, spec: ArraySpec, how: str) -> DataType:
    try:
        found = _DTYPES.get(np.dtype(spec.dtype))
    except TypeError:
        found = None
    kinds = {"sum": "fiu", "secure_sum": "iu"}.get(how, "f")
    usable = [kind for dtype, kind in _DTYPES.items() if dtype.kind in kinds]
    if found is None or found not in usable:
        names = ", ".join(kind.numpy.name for kind in usable)
        raise UsageError(f"{name!r}: arrays for a {how} are {names}, not {spec.dtype!r}.")
    return found


def _bounds(name: str, spec: ArraySpec) -> tuple[Parameter, ...]:
    if spec.largest is None or not 0 <= spec.largest < 2**63:
        raise UsageError(
            f"{name!r}: a secure sum needs ArraySpec(largest=...), from 0 to below 2**63, which no "
            "element of a device's array may be above."
        )
    return (Parameter("", np.array(spec.largest, np.int64)),)
