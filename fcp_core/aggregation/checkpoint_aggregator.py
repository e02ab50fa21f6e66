"""Accumulates whole checkpoints: several intrinsics that are fed, merged and reported as one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fcp_core.aggregation.additions import Additions, Place, Plan, Step
from fcp_core.aggregation.adoption import adopt, adoptable
from fcp_core.aggregation.aggregate import Aggregate, KeptBudget, description
from fcp_core.aggregation.spec import Tensor, TensorSpec
from fcp_core.aggregation.tensors import tensor_nbytes, tensor_of
from fcp_core.errors import plugin_errors
from fcp_core.protocol.blocks import FileBlock, block_of
from fcp_core.protocol.checkpoint import Checkpoint
from fcp_core.protocol.checkpoint.kernels import Bytes
from fcp_core.protocol.checkpoint.layout import Spans
from fcp_core.protocol.status import Code, StatusError

__all__ = ["CheckpointAggregator", "KeptBudget"]

#: How many layouts of checkpoints an aggregator remembers.
_MAX_PLANS = 16
#: Of additions without factors.
_NO_WEIGHTS = np.ones(0)


class CheckpointAggregator(Aggregate):
    """The accumulators of several intrinsics. Not thread-safe: one owner at a time.

    A checkpoint is accumulated by all of them or by none. Of one whose layout is known, nothing is
    looked at but the numbers, which are added where they lie (``aggregation.additions``).

    :param bound: the intrinsics in the order of their outputs.
    :param budget: what bounds the aggregators that need all inputs; None: nothing does.
    :param states: what each accumulator begins with (see :meth:`load`); None: empty ones.
    :param kernels: what adds; None: the fastest that is installed.
    :raises StatusError: whatever an aggregator has against its intrinsic.
    """

    def accumulate(self, checkpoint: Mapping[str, Tensor], own: memoryview | None = None) -> None:
        """Add one checkpoint; tensors that no intrinsic asks for are ignored.

        :param own: the bytes of the checkpoint, if they may be changed and kept.
        :raises StatusError: NOT_FOUND for a missing tensor; INVALID_ARGUMENT for one of a wrong
            dtype, shape or value; RESOURCE_EXHAUSTED if it would have to be kept and there is no
            room; ABORTED once finished; INTERNAL if an aggregator cannot validate. Nothing is
            changed then. DATA_LOSS if an aggregator fails later, or did: what it holds is not to
            be trusted any more.
        """
        add = self._prepare(checkpoint, own)
        members = self._members if add is None else self._others
        specs = self._specs if add is None else [member.specs for member in members]
        inputs = _fetch(checkpoint, specs)
        if self._finished or self._broken is not None:
            self._check_not_finished()
        for member, tensors in zip(members, inputs, strict=True):
            try:
                member.accumulator.validate(tensors)
            except StatusError:
                raise
            except plugin_errors() as error:
                raise member.bound.fault("validate", error) from None
        if self._budget is not None and self._keeps:
            kept = (
                tensor_nbytes(tensor)
                for member, tensors in zip(members, inputs, strict=True)
                if member.bound.factory.needs_all_inputs
                for tensor in tensors
            )
            self._budget.take(sum(kept))
        self._empty = False
        if add is not None:
            if add():
                self._plans.clear()
        elif self._additions is not None:
            self._additions.changed()
        for member, tensors in zip(members, inputs, strict=True):
            try:
                member.accumulator.accumulate(tensors)
            except plugin_errors() as error:
                self._broken = member.bound.fault("accumulate", error, Code.DATA_LOSS)
                self._check_not_finished()

    def _prepare(
        self, checkpoint: Mapping[str, Tensor], own: memoryview | None
    ) -> Callable[[], bool] | None:
        """Return what adds the checkpoint, which cannot fail; None: each member has to look at it.

        That returns whether it took the checkpoint's memory for the totals: the checkpoint and all
        plans are of no use then. None also if a weight is negative or not finite, or if it is not
        sure that all totals stay in range.
        """
        if not isinstance(checkpoint, Checkpoint) or checkpoint.layout is None or self._finished:
            return None
        additions, plans = self._additions, self._plans
        if additions is None:
            additions = self._begin_to_add()
        if not additions.accumulators:
            return None
        if checkpoint.layout not in plans:
            if len(plans) == _MAX_PLANS:
                plans.clear()
            plans[checkpoint.layout] = additions.plan(checkpoint.layout)
        plan = plans[checkpoint.layout]
        if plan is None:
            return None
        try:
            read = _read(plan, checkpoint)
        except StatusError:
            # The members say what is wrong with which tensor.
            return None
        if read is None:
            return None
        weights, work = read
        bounds: dict[Place, float] = {}
        for place, peak in _peaks(work, checkpoint, weights).items():
            room = additions.rooms[place]
            bound = (room.bound + peak) * room.slack
            if not bound <= room.limit:  # as it is if nothing is known of the totals
                measured = room.after(peak)
                if measured is None:
                    return None
                bound = measured
            bounds[place] = bound
        # The others may look at the same bytes later.
        own = None if self._others else own
        return functools.partial(self._add, additions, plan, weights, work, bounds, own)

    def _add(
        self,
        additions: Additions,
        plan: Plan,
        weights: NDArray[np.float64],
        work: Sequence[tuple[Step, Bytes]],
        bounds: Mapping[Place, float],
        own: memoryview | None,
    ) -> bool:
        adopted = None if own is None else _adoptable(additions, plan, own)
        total = _decoded_total(additions, plan, work)
        additions.empty = False
        for step, data in work:
            if total is not None and step is total[0]:
                additions.adopt(step.place, total[1], {0: 0})
            elif adopted is None or step is not adopted[0]:
                step.add(data, weights)
        if own is not None and adopted is not None:
            # Last, for it may overwrite what the others add.
            step, rows = adopted
            additions.adopt(step.place, *adopt(own, step.place[0], rows, weights))
        for place, bound in bounds.items():
            additions.rooms[place].bound = bound
        additions.pending += 1
        return adopted is not None or total is not None


def _decoded_total(
    additions: Additions, plan: Plan, work: Sequence[tuple[Step, Bytes]]
) -> tuple[Step, Tensor] | None:
    """Return the step whose totals may be integers that were decoded into a file, and those."""
    for step, data in work[len(plan.steps) :] if additions.empty else ():
        dtype, size = step.place[0], additions.size(step.place)
        alone = dtype.kind in "iu" and step.rows.tolist() == [[0, 0, size, -1]]
        if alone and isinstance(block_of(np.asarray(data).data), FileBlock):
            decoded: Tensor = np.asarray(data).view(dtype)
            decoded.flags.writeable = True  # nobody else has it
            return step, decoded
    return None


def _adoptable(additions: Additions, plan: Plan, own: memoryview) -> tuple[Step, Spans] | None:
    """Return the step whose totals may lie in the contribution, and where; None: none may."""
    for step in plan.steps if additions.empty else ():
        rows = adoptable(own, step.place[0], step.rows, additions.size(step.place))
        if rows is not None:
            return step, rows
    return None


def _fetch(
    checkpoint: Mapping[str, Tensor], wanted: Sequence[Sequence[TensorSpec]]
) -> list[list[Tensor]]:
    fetched: dict[str, Tensor] = {}
    inputs = []
    for specs in wanted:
        tensors = []
        for spec in specs:
            if spec.name not in fetched:
                fetched[spec.name] = tensor_of(checkpoint, spec.name)
            tensor = fetched[spec.name]
            if not spec.matches(tensor):
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the task expects {spec}, the checkpoint has {description(tensor)}",
                )
            tensors.append(tensor)
        inputs.append(tensors)
    return inputs


def _read(
    plan: Plan, checkpoint: Checkpoint
) -> tuple[NDArray[np.float64], list[tuple[Step, Bytes]]] | None:
    """Return the weights, and what adds which bytes.

    None if a weight is negative or not finite.

    :raises StatusError: INVALID_ARGUMENT if a tensor is corrupt.
    """
    tensors: dict[str, Tensor] = {}
    weights = np.ones(len(plan.weights)) if plan.weights else _NO_WEIGHTS
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for index, (name, dtype) in enumerate(plan.weights):
            if name not in tensors:
                tensors[name] = checkpoint[name].reshape(())
            number = tensors[name][()]
            if not 0 <= number < math.inf:
                return None
            weights[index] = dtype.type(number)
    work: list[tuple[Step, Bytes]] = [(step, checkpoint.data) for step in plan.steps]
    for name, dtype, step in plan.decoded:
        tensor = tensors[name] if name in tensors else checkpoint[name]
        elements = tensor.reshape(-1).astype(dtype, copy=False)
        work.append((step, elements.view(np.uint8)))
    return weights, work


def _peaks(
    work: Sequence[tuple[Step, Bytes]], checkpoint: Checkpoint, weights: NDArray[np.float64]
) -> dict[Place, float]:
    """Return the peak of what is added to each array, as opening the checkpoint found it if so."""
    peaks: dict[Place, float] = {}
    for step, data in work:
        if step.peak is None:
            continue
        if checkpoint.peaks is None or step.peaks is None:
            peak = step.peak(data, weights)
        else:
            # The last factor is what -1 names.
            factors = np.append(weights, 1.0)[step.rows[:, 3]]
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                peak = float((checkpoint.peaks[step.peaks] * factors).max())
        before = peaks.get(step.place, peak)
        # A NaN stays one.
        peaks[step.place] = before if before > peak or before != before else peak
    return peaks
