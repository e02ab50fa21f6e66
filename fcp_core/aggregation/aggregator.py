"""The contract of an aggregator: how one intrinsic's contributions become one result.

Laws that hold for every implementation (the conformance kit checks them): validation comes before
any change of state; the order of inputs does not matter beyond rounding; merge is associative and
commutative; ``load(dump(a))`` goes on as ``a``; a split over several accumulators that are then
merged equals one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from typing_extensions import Self

from fcp_core.aggregation.spec import Intrinsic, Tensor

#: The URI of the intrinsic that a joint aggregator is made for; no task can ask for it.
JOINT_URI = "fcp:joint"

#: Options of an aggregator as the configuration gives them: typed values by name.
Options = Mapping[str, Any]

#: The options of an aggregator that has none, or only defaults.
NO_OPTIONS: Options = MappingProxyType({})


class Total:
    """An array that inputs are added to.

    Its owner changes the array in place only, and reads it through :attr:`array` each time:
    the engine may have moved the elements to another place.
    """

    def __init__(self, array: Tensor) -> None:
        #: The elements so far: a number of float, double or an integer dtype for each; zeros before
        #: the first input.
        self.array = array


@dataclass(frozen=True)
class Addition:
    """One step of an accumulator: ``total += inputs[value]``, or that times ``inputs[weight]``.

    Both are rounded in the total's dtype, first the product and then the sum.

    :param total: of the value's number of elements, and of its dtype, or int64 for an int32 value;
        no other addition has the same.
    :param value: the position of the input that is added.
    :param weight: the position of an input that holds one number; None: the value itself is added.
        Only for totals of floats.
    :param allow_non_finite: whether floats may be, or become, NaN or infinite.
    """

    total: Total
    value: int
    weight: int | None = None
    allow_non_finite: bool = False


class Accumulator(ABC):
    """The running state of one intrinsic. Not thread-safe: one owner at a time."""

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """How many contributions it holds."""

    @abstractmethod
    def validate(self, inputs: Sequence[Tensor]) -> None:
        """Check one contribution without changing anything.

        :param inputs: the tensors of the intrinsic's inputs, nested ones included, in depth-first
            order; their dtypes and shapes already match the specifications.
        :raises StatusError: INVALID_ARGUMENT if the values cannot be accumulated.
        """

    @abstractmethod
    def accumulate(self, inputs: Sequence[Tensor]) -> None:
        """Add one contribution that :meth:`validate` has accepted; must not fail.

        The tensors may be views on a buffer that is reused: copy what is kept.
        """

    def additions(self) -> Sequence[Addition] | None:
        """Return what :meth:`accumulate` does, if that is nothing but additions; optional.

        With them, a contribution to many intrinsics is added in one go. An accumulator may name
        them if it counts its inputs, accepts every contribution whose weights are finite and not
        negative and with which the totals stay in the range of their dtypes, and its state is
        otherwise the totals alone. Then :meth:`accumulate` is not called for every contribution,
        but :meth:`added`, at the latest before any other method. Where the numbers may be too
        large, :meth:`validate` is asked, and has to refuse what would make a total infinite or
        wrap around.
        """
        return None

    def added(self, count: int) -> None:
        """Note that *count* contributions were added as :meth:`additions` says."""
        raise NotImplementedError(f"{type(self).__name__} names additions but has no added()")

    def validate_merge(self, other: Self) -> None:
        """Check that :meth:`merge` will not fail, without changing anything; optional.

        The intrinsics of a task are merged all or none, if each of them says beforehand what it
        has against it.

        :raises StatusError: whatever :meth:`merge` raises.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what *other* holds; *other* is not changed.

        :raises StatusError: INVALID_ARGUMENT if the two are not of one configuration; OUT_OF_RANGE
            if what they hold together does not fit the dtype.
        """

    def can_report(self) -> bool:
        """Whether :meth:`report` may be called now."""
        return True

    @abstractmethod
    def report(self) -> list[Tensor]:
        """Return one tensor for each output, nested ones included, in depth-first order.

        It may hand out the state itself: the accumulator is not used afterwards.

        :raises StatusError: FAILED_PRECONDITION if there is nothing to report.
        """

    @abstractmethod
    def dump(self) -> bytes:
        """Return the state as bytes (the aggregation core's state messages where it has one)."""

    def pieces(self) -> Sequence[bytes | memoryview]:
        """Return :meth:`dump` in pieces, which may be views on the state; optional.

        They are not used any more once the state has changed.
        """
        return (self.dump(),)


@dataclass(frozen=True)
class Resumed:
    """What a new round of a series begins with.

    :param options: in place of the aggregator's own, as if the task had set them.
    :param tensors: for devices: they are added to the task's checkpoint.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AggregatorFactory:
    """What a plugin registers: a recipe for accumulators, chosen by *name*.

    :param name: unique among the installed aggregators; an aggregator that is the reference
        implementation of an intrinsic carries the intrinsic's URI as its name.
    :param uris: the intrinsic URIs that it can serve.
    :param summary: one line for ``fcp plugins``.
    :param make: builds an empty accumulator; raises StatusError INVALID_ARGUMENT if the intrinsic's
        inputs, outputs, parameters or nested intrinsics do not fit.
    :param load: rebuilds an accumulator from :meth:`Accumulator.dump`; raises StatusError
        INVALID_ARGUMENT for bytes that are not such a dump.
    :param needs_all_inputs: it keeps every contribution until it reports (median, Krum); the engine
        then bounds how many bytes it may keep.
    :param heavy_report: its report computes much, whatever its size: an engine that has other
        processes for heavy work may have them make it.
    :param nested_only: it is only usable inside another intrinsic (``GoogleSQL:sum``).
    :param joint: it looks at a whole contribution (the norm of an update, a distance between two)
        and not at each tensor alone. All intrinsics of a task that it serves then share one
        accumulator: it is made for an intrinsic with the URI :data:`JOINT_URI` and nothing of its
        own, which nests them in their order, also if there is one only.
    :param protocol: the only aggregation protocol under which a task may choose it, since it takes
        what that has summed; None: any.
    :param randomised: its accumulators are :class:`fcp_core.aggregation.release.Randomised`: their
        result is drawn, and nobody sees it without its noise.
    :param resume: of a randomised aggregator that remembers something from round to round: returns
        what a task begins with, given the options and what the last release of its series left
        (None: it is the first). Such a task shares a series with those of its population that have
        the same option ``series``, or its name; of a series one task is open at a time.
    """

    name: str
    uris: frozenset[str]
    summary: str
    make: Callable[[Intrinsic, Options], Accumulator]
    load: Callable[[Intrinsic, Options, bytes], Accumulator]
    needs_all_inputs: bool = False
    heavy_report: bool = False
    nested_only: bool = False
    joint: bool = False
    protocol: str | None = None
    randomised: bool = False
    resume: Callable[[Options, bytes | None], Resumed] | None = None
