"""The aggregator of ``federated_aggregate``: a computation's own functions, run with TensorFlow.

The intrinsic's parameters are the functions (see :mod:`fcp_platform.functions`) and then the leaves
of the zero. TensorFlow is imported when the first such accumulator is made.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.checks import check_mergeable
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.errors import MissingExtraError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError

URI = "federated_aggregate"

_COUNT = "num_inputs"

_Function: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]


class FunctionAccumulator(Accumulator):
    """An accumulator that a computation's ``accumulate``, ``merge`` and ``report`` work on.

    :param intrinsic: any inputs and outputs; the parameters are the functions and the zero.
    :raises StatusError: INVALID_ARGUMENT if they do not belong together; FAILED_PRECONDITION if
        TensorFlow is not installed.
    """

    num_inputs = 0

    def __init__(self, intrinsic: Intrinsic) -> None:
        self._intrinsic = intrinsic
        if not intrinsic.parameters or intrinsic.nested:
            raise _bad("its parameters must be its functions and its zero, and nothing be nested")
        functions = intrinsic.parameters[0].value
        if functions.dtype != np.dtype(object) or functions.shape != (3,):
            raise _bad("its first parameter must be three serialized graphs")
        self._leaves = [np.asarray(parameter.value) for parameter in intrinsic.parameters[1:]]
        zeros, inputs, outputs = len(self._leaves), len(intrinsic.inputs), len(intrinsic.outputs)
        self._accumulate = _function("accumulate", functions[0], zeros + inputs, zeros)
        self._merge = _function("merge", functions[1], 2 * zeros, zeros)
        self._report = _function("report", functions[2], zeros, outputs)
        # What validate has computed already: the inputs and the accumulator that has them.
        self._ahead: tuple[Sequence[Tensor], list[Tensor]] | None = None

    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Run ``accumulate`` to see whether it can; the outcome is kept for :meth:`accumulate`."""
        self._ahead = (inputs, self._accumulate([*self._leaves, *inputs]))

    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add one contribution."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and _identical(ahead[0], inputs):
            self._leaves = ahead[1]
        else:
            self._leaves = self._accumulate([*self._leaves, *inputs])
        self.num_inputs += 1

    def validate_merge(self, other: Self) -> None:
        """Refuse an accumulator of another computation."""
        check_mergeable(self, other)

    def merge(self, other: Self) -> None:
        """Add what *other* holds."""
        self.validate_merge(other)
        if not other.num_inputs:
            return
        self._ahead = None
        if self.num_inputs:
            self._leaves = self._merge([*self._leaves, *other._leaves])
        else:
            self._leaves = list(other._leaves)
        self.num_inputs += other.num_inputs

    def report(self) -> list[Tensor]:
        """Return what ``report`` makes of the accumulator."""
        return self._report(self._leaves)

    def dump(self) -> bytes:
        """Return the number of inputs and the accumulator's leaves as a checkpoint."""
        tensors: dict[str, Tensor] = {_COUNT: np.array(self.num_inputs, np.int64)}
        tensors.update((str(index), leaf) for index, leaf in enumerate(self._leaves))
        return write_checkpoint(tensors, "tf_v1")

    @classmethod
    def load(cls, intrinsic: Intrinsic, data: bytes) -> Self:
        """Rebuild an accumulator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are not such a dump.
        """
        accumulator = cls(intrinsic)
        checkpoint = open_checkpoint(data)
        names = {_COUNT, *(str(index) for index in range(len(accumulator._leaves)))}
        if set(checkpoint) != names:
            raise _bad("the state does not have the accumulator's tensors")
        count = checkpoint.get_tensor(_COUNT)
        if count.dtype != np.int64 or count.shape or count < 0:
            raise _bad("the state has no number of inputs")
        leaves = [checkpoint.get_tensor(str(index)) for index in range(len(names) - 1)]
        for leaf, zero in zip(leaves, accumulator._leaves, strict=True):
            if leaf.dtype != zero.dtype:
                raise _bad(f"the state has a {leaf.dtype} tensor where a {zero.dtype} is expected")
        accumulator._leaves = leaves
        accumulator.num_inputs = int(count)
        return accumulator


def _function(label: str, graph: Any, num_inputs: int, num_outputs: int) -> _Function:
    if not isinstance(graph, bytes):
        raise _bad("its first parameter must be three serialized graphs")
    try:
        return _load_function(label, graph, num_inputs, num_outputs)
    except ImportError as error:
        raise StatusError(
            Code.FAILED_PRECONDITION, str(MissingExtraError("federated_aggregate", "tff"))
        ) from error


@functools.lru_cache(maxsize=64)
def _load_function(label: str, graph: bytes, num_inputs: int, num_outputs: int) -> _Function:
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    imported = tf.Graph()
    try:
        graph_def.ParseFromString(graph)
        with imported.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        inputs = [imported.get_tensor_by_name(f"input_{i}:0") for i in range(num_inputs)]
        outputs = [imported.get_tensor_by_name(f"output_{i}:0") for i in range(num_outputs)]
    except Exception as error:
        raise _bad(f"its function {label} cannot be loaded: {error}") from error
    if sum(op.type == "Placeholder" for op in imported.get_operations()) != num_inputs:
        raise _bad(f"its function {label} does not take {num_inputs} tensors")
    session = tf.compat.v1.Session(graph=imported)
    # Runs of one session share variables and tables; a graph without any may run concurrently.
    stateful = any(op.op_def.is_stateful for op in imported.get_operations())
    guard: contextlib.AbstractContextManager[Any] = (
        threading.Lock() if stateful else contextlib.nullcontext()
    )

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        try:
            with guard:
                results = session.run(outputs, dict(zip(inputs, values, strict=True)))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise _bad(f"its function {label} failed: {error}") from error
        return [
            np.asarray(result, dtype=object if tensor.dtype == tf.string else None)
            for tensor, result in zip(outputs, results, strict=True)
        ]

    return run


def _identical(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(_is, one, other))


def _is(one: object, other: object) -> bool:
    return one is other


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"intrinsic {URI!r}: {problem}")


def make(intrinsic: Intrinsic, options: Options) -> FunctionAccumulator:
    """Make an empty accumulator; it has no options."""
    return FunctionAccumulator(intrinsic)


def load(intrinsic: Intrinsic, options: Options, data: bytes) -> FunctionAccumulator:
    """Rebuild an accumulator; it has no options."""
    return FunctionAccumulator.load(intrinsic, data)


FACTORY = AggregatorFactory(
    URI,
    frozenset({URI}),
    "a computation's own accumulate, merge and report, run with TensorFlow",
    make,
    load,
    heavy_report=True,
)
