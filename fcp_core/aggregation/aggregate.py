"""What several intrinsics accumulated of whole checkpoints: merged, reported, written as bytes.

How a checkpoint comes in is in ``aggregation.checkpoint_aggregator``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.additions import Additions, Plan
from fcp_core.aggregation.aggregator import Accumulator
from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.configuration import flat_inputs, flat_outputs
from fcp_core.aggregation.release import Randomised, Release, ReleaseContext, Released
from fcp_core.aggregation.spec import DataType, Tensor, TensorSpec
from fcp_core.aggregation.tensors import bytes_field
from fcp_core.errors import plugin_errors
from fcp_core.protocol.checkpoint import Layout
from fcp_core.protocol.checkpoint.kernels import Kernels, default_kernels
from fcp_core.protocol.checkpoint.wire import BYTES, fields
from fcp_core.protocol.joining import LARGE
from fcp_core.protocol.protos import checkpoint_aggregator_pb2 as state_pb2
from fcp_core.protocol.status import Code, StatusError

#: The field of a ``CheckpointAggregatorState`` that has them.
_AGGREGATORS = state_pb2.CheckpointAggregatorState.AGGREGATORS_FIELD_NUMBER
#: What no checkpoint format packs.
_AS_IN_MEMORY = (DataType.FLOAT, DataType.DOUBLE)


class KeptBudget:
    """How many bytes the aggregators that need all inputs may keep together. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Count *nbytes* more.

        :raises StatusError: RESOURCE_EXHAUSTED if that would exceed the limit; nothing is counted.
        """
        with self._lock:
            if self._used + nbytes > self._limit:
                raise StatusError(
                    Code.RESOURCE_EXHAUSTED,
                    f"an aggregator that needs all inputs would keep {self._used + nbytes} bytes; "
                    f"max_kept_bytes is {self._limit}",
                )
            self._used += nbytes


@dataclass(frozen=True)
class Member:
    """An intrinsic with its accumulator and the specifications of its inputs."""

    bound: BoundIntrinsic
    specs: tuple[TensorSpec, ...]
    accumulator: Accumulator


class Aggregate:
    """The accumulators of several intrinsics; made as ``CheckpointAggregator``.

    :param bound: the intrinsics in the order of their outputs.
    :param budget: what bounds the aggregators that need all inputs; None: nothing does.
    :param states: what each accumulator begins with (see :meth:`load`); None: empty ones.
    :param kernels: what adds; None: the fastest that is installed.
    :raises StatusError: whatever an aggregator has against its intrinsic.
    """

    def __init__(
        self,
        bound: Sequence[BoundIntrinsic],
        budget: KeptBudget | None = None,
        *,
        states: Sequence[bytes | memoryview] | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        self._bound = tuple(bound)
        self._budget = budget
        if states is None:
            accumulators = [item.make() for item in bound]
        else:
            accumulators = [item.make(state) for item, state in zip(bound, states, strict=True)]
        self._specs = [tuple(flat_inputs(item.intrinsic)) for item in bound]
        self._members = list(map(Member, self._bound, self._specs, accumulators))
        self._finished = False
        #: Whether nothing was accumulated.
        self._empty = states is None
        #: Whether an aggregator keeps its inputs.
        self._keeps = any(item.factory.needs_all_inputs for item in self._bound)
        #: Why it cannot be used any more: an aggregator failed, and left what nobody knows.
        self._broken: StatusError | None = None
        self._kernels = kernels or default_kernels()
        # Made for the first checkpoint whose layout is known, and the members that it leaves over.
        self._additions: Additions | None = None
        self._others: list[Member] = []
        self._plans: dict[Layout, Plan | None] = {}

    @classmethod
    def load(
        cls,
        bound: Sequence[BoundIntrinsic],
        data: bytes,
        budget: KeptBudget | None = None,
        kernels: Kernels | None = None,
    ) -> Self:
        """Rebuild an aggregator from :meth:`dump`.

        :raises StatusError: INVALID_ARGUMENT for bytes that are no such state; RESOURCE_EXHAUSTED
            if it holds more than *budget* has left.
        """
        try:
            view = memoryview(data)
            # Large ones are not copied, as the generated class would.
            states = [
                view[field.start : field.end]
                if len(view) >= LARGE
                else data[field.start : field.end]
                for field in fields(view, 0, len(view))
                if (field.number, field.wire_type) == (_AGGREGATORS, BYTES)
            ]
        except StatusError as error:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"not a serialized CheckpointAggregatorState: {error.message}",
            ) from None
        if len(states) != len(bound):
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"the state holds {len(states)} aggregators, the configuration {len(bound)}",
            )
        if budget is not None:
            budget.take(
                sum(
                    len(state)
                    for item, state in zip(bound, states, strict=True)
                    if item.factory.needs_all_inputs
                )
            )
        return cls(bound, budget, states=states, kernels=kernels)

    @property
    def only_adds(self) -> bool:
        """Whether a checkpoint is nothing but numbers to add."""
        return all(member.accumulator.additions() is not None for member in self._members)

    @property
    def as_in_memory(self) -> bool:
        """Whether every checkpoint has its numbers as they are in memory."""
        return all(spec.dtype in _AS_IN_MEMORY for m in self._members for spec in m.specs)

    @property
    def num_inputs(self) -> int:
        """How many checkpoints it holds.

        :raises StatusError: ABORTED once finished; FAILED_PRECONDITION if the intrinsics disagree.
        """
        self._check_not_finished()
        self._settle()
        counts = {member.accumulator.num_inputs for member in self._members}
        if len(counts) > 1:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"the intrinsics disagree on the number of inputs: {sorted(counts)}",
            )
        return counts.pop() if counts else 0

    def merge(self, other: Aggregate) -> None:
        """Add what *other* holds; ignored once finished, as upstream does.

        :raises StatusError: INVALID_ARGUMENT if the two are not of one configuration; ABORTED if
            *other* is finished; OUT_OF_RANGE if a sum would leave its dtype. Nothing is changed
            then.
        """
        other._check_not_finished()
        if [item.intrinsic for item in self._bound] != [item.intrinsic for item in other._bound]:
            raise StatusError(Code.INVALID_ARGUMENT, "partial aggregates of two configurations")
        if self._finished:
            return
        self._empty = False
        self._settle()
        other._settle()
        mine, theirs = self._additions, other._additions
        if mine is None and theirs is not None:
            # What only takes in what others added still knows what it may take in.
            mine = self._begin_to_add()
        if mine is not None and theirs is not None and mine.takes(theirs):
            members = list(zip(self._others, other._others, strict=True))
        else:
            members, theirs = list(zip(self._members, other._members, strict=True)), None
        for one, another in members:
            with one.bound.guard("validate_merge"):
                one.accumulator.validate_merge(another.accumulator)
        if mine is not None and theirs is not None:
            mine.merge(theirs)
        elif mine is not None:
            mine.changed()
        whole = theirs is None
        for one, another in members:
            try:
                one.accumulator.merge(another.accumulator)
            except plugin_errors() as error:
                if whole and isinstance(error, StatusError):  # then nothing was changed
                    raise
                self._broken = one.bound.fault("merge", error, Code.DATA_LOSS)
                self._check_not_finished()
            whole = False

    def report(self) -> dict[str, Tensor]:
        """Finish and return the outputs by name, in order; those without a name are left out.

        :raises StatusError: ABORTED once finished; INTERNAL if an aggregator reports something that
            is not what its intrinsic promises.
        """
        if drawn := [item.factory.name for item in self._bound if item.factory.randomised]:
            raise StatusError(Code.INTERNAL, f"the result of {drawn[0]!r} is drawn, not reported")
        return self._finish({}, ())

    def release(self, contexts: Sequence[ReleaseContext]) -> Released:
        """Finish and draw the outputs; those of aggregators without noise are as they are.

        :param contexts: one for each intrinsic.
        :raises StatusError: as :meth:`report`.
        """
        drawn: dict[int, Release] = {}
        return Released(self._finish(drawn, contexts), drawn)

    def _finish(
        self, releases: dict[int, Release], contexts: Sequence[ReleaseContext]
    ) -> dict[str, Tensor]:
        self._check_not_finished()
        self._settle()
        self._finished = True
        result: dict[str, Tensor] = {}
        for place, member in enumerate(self._members):
            item, specs = member.bound, tuple(flat_outputs(member.bound.intrinsic))
            found: Sequence[Tensor]
            with item.guard("report"):
                if isinstance(member.accumulator, Randomised):
                    releases[place] = member.accumulator.release(contexts[place])
                    found = releases[place].tensors
                else:
                    found = member.accumulator.report()
                tensors = [np.asarray(tensor) for tensor in found]
            if len(tensors) != len(specs):
                raise StatusError(
                    Code.INTERNAL,
                    f"aggregator {item.factory.name!r} reports {len(tensors)} tensors, "
                    f"its intrinsic has {len(specs)} outputs",
                )
            for spec, tensor in zip(specs, tensors, strict=True):
                if not spec.matches(tensor):
                    what = f"{description(tensor)} for {spec}"
                    raise StatusError(
                        Code.INTERNAL, f"aggregator {item.factory.name!r} reports {what}"
                    )
                if spec.name:
                    result[spec.name] = tensor
        self._drop()
        return result

    def abort(self) -> None:
        """Finish and drop everything."""
        self._finished = True
        self._drop()

    def dump(self) -> bytes:
        """Return the state as a serialized ``CheckpointAggregatorState``.

        :raises StatusError: ABORTED once finished.
        """
        return b"".join(self.pieces())

    def pieces(self) -> list[bytes | memoryview]:
        """Return :meth:`dump` in pieces, which may be views on what is accumulated.

        :raises StatusError: ABORTED once finished.
        """
        self._check_not_finished()
        self._settle()
        pieces: list[bytes | memoryview] = []
        for member in self._members:
            with member.bound.guard("dump"):
                pieces += bytes_field(_AGGREGATORS, member.accumulator.pieces())
        return pieces

    def _begin_to_add(self) -> Additions:
        """Find out which members only add."""
        members = ((member.accumulator, member.specs) for member in self._members)
        self._additions = Additions(members, self._kernels, empty=self._empty)
        adding = set(map(id, self._additions.accumulators))
        self._others = [m for m in self._members if id(m.accumulator) not in adding]
        return self._additions

    def _settle(self) -> None:
        if self._additions is not None:
            self._additions.settle()

    def _drop(self) -> None:
        self._members, self._others = [], []
        self._additions = None
        self._plans = {}

    def _check_not_finished(self) -> None:
        if self._broken is not None:
            raise StatusError(self._broken.code, self._broken.message)
        if self._finished:
            raise StatusError(Code.ABORTED, "the aggregation is finished")


def description(tensor: Any) -> str:
    """Return what a tensor is, for a message."""
    kind = "string" if tensor.dtype == object else str(tensor.dtype)
    return f"{kind}[{','.join(map(str, tensor.shape))}]"
