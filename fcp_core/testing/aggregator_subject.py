"""The aggregator that a conformance kit is about: what it is given, and how results compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory
from fcp_core.aggregation.checks import same_configuration
from fcp_core.aggregation.configuration import flat_inputs
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.errors import MissingExtraError
from fcp_core.protocol.status import StatusError
from fcp_core.testing.laws import Laws
from fcp_core.testing.tensor_strategies import resized, tensors

try:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise MissingExtraError("the conformance kit", "testing") from error

#: One contribution: a tensor for each input, nested ones included, depth first.
Contribution = list[Tensor]


class AggregatorSubject(Laws):
    """A factory, an intrinsic and options, with contributions to accumulate.

    It has no laws of its own.
    """

    factory: ClassVar[AggregatorFactory]
    #: A configuration that the factory accepts.
    intrinsic: ClassVar[Intrinsic]
    options: ClassVar[Mapping[str, Any]] = {}
    #: Whether results are equal to the last bit; else within *rtol* and *atol*.
    exact: ClassVar[bool] = True
    rtol: ClassVar[float] = 1e-5
    atol: ClassVar[float] = 1e-5
    #: How many examples each law is tried with, and whether a failing one is made small.
    max_examples: ClassVar[int] = 25
    shrink: ClassVar[bool] = True

    def contributions(self) -> SearchStrategy[Contribution]:
        """Draw contributions that are accepted."""
        specs = list(flat_inputs(self.intrinsic))
        is_open = any(size < 0 for spec in specs for size in spec.shape)
        # Made once and not for each draw: hypothesis takes longer to make one than to draw from it.
        return st.one_of(
            [
                st.tuples(*(tensors(spec, unknown) for spec in specs)).map(list)
                for unknown in (range(5) if is_open else (1,))
            ]
        )

    def refused(self) -> SearchStrategy[Contribution] | None:
        """Draw contributions of the right dtypes and shapes that must be refused."""
        return None

    def reference(self, contributions: Sequence[Contribution]) -> list[Tensor] | None:
        """Return what the result must be, computed some other way."""
        return None

    def resized(self, contribution: Contribution, size: int) -> Contribution:
        """Return a contribution with tiny (-1), small (0) or huge (1) numbers.

        Override it if some of the numbers are names. What is refused then is left out.
        """
        return [resized(tensor, size) for tensor in contribution]

    def normalise(self, result: list[Tensor]) -> list[Tensor]:
        """Return a form of the result in which equal ones look equal."""
        return result

    def make(self) -> Accumulator:
        """Make an empty accumulator."""
        return self.factory.make(self.intrinsic, self.options)

    def fold(self, contributions: Sequence[Contribution]) -> Accumulator:
        """Make an accumulator that holds some contributions."""
        accumulator = self.make()
        for contribution in contributions:
            self.accumulate(accumulator, contribution)
        return accumulator

    def accumulate(self, accumulator: Accumulator, contribution: Contribution) -> None:
        """Validate and accumulate."""
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)

    def reload(self, accumulator: Accumulator) -> Accumulator:
        """Dump and load."""
        return self.factory.load(self.intrinsic, self.options, accumulator.dump())

    def others(self) -> Iterator[tuple[Intrinsic, Accumulator]]:
        """Yield accumulators of other configurations, as far as the factory makes them.

        Each differs in one way: in the values of parameters, in dtypes, or in the sizes of tensors.
        """
        for change in (_other_parameters, _other_dtypes, _other_shapes):
            other = change(self.intrinsic)
            if same_configuration(other, self.intrinsic):
                continue
            try:
                yield other, self.factory.make(other, self.options)
            except StatusError:
                continue

    def _many(self, min_size: int = 0) -> SearchStrategy[list[Contribution]]:
        return st.lists(self.contributions(), min_size=min_size, max_size=6)

    def _check(self, law: Callable[..., None], *strategies: SearchStrategy[Any]) -> None:
        # Hypothesis refuses one decorated method that several subclasses inherit: hence inside.
        phases = tuple(phase for phase in Phase if self.shrink or phase is not Phase.shrink)
        run = settings(
            max_examples=self.max_examples,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        )(given(*strategies)(law))
        run()

    def _assert_same(self, one: Accumulator, other: Accumulator) -> None:
        assert one.can_report() == other.can_report()
        if one.can_report():
            self._assert_equal(one.report(), other.report())

    def _assert_equal(
        self, result: list[Tensor], expected: list[Tensor], *, exact: bool = True
    ) -> None:
        left, right = self.normalise(result), self.normalise(expected)
        assert len(left) == len(right)
        for mine, theirs in zip(left, right, strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.shape == theirs.shape
            if mine.dtype == object or (self.exact and (exact or mine.dtype.kind != "f")):
                np.testing.assert_array_equal(mine, theirs)
            else:
                np.testing.assert_allclose(mine, theirs, rtol=self.rtol, atol=self.atol)


_DTYPES = {
    DataType.FLOAT: DataType.DOUBLE,
    DataType.DOUBLE: DataType.FLOAT,
    DataType.INT32: DataType.INT64,
    DataType.INT64: DataType.INT32,
}


def _other_parameters(intrinsic: Intrinsic) -> Intrinsic:
    parameters = tuple(
        replace(each, value=each.value + 1) if each.value.dtype.kind in "iuf" else each
        for each in intrinsic.parameters
    )
    nested = tuple(map(_other_parameters, intrinsic.nested))
    return replace(intrinsic, parameters=parameters, nested=nested)


def _other_dtypes(intrinsic: Intrinsic) -> Intrinsic:
    return _with_specs(
        intrinsic, lambda spec: replace(spec, dtype=_DTYPES.get(spec.dtype, spec.dtype))
    )


def _other_shapes(intrinsic: Intrinsic) -> Intrinsic:
    def larger(spec: TensorSpec) -> TensorSpec:
        if not spec.shape or not spec.is_fully_defined:
            return spec
        return replace(spec, shape=(spec.shape[0] + 1, *spec.shape[1:]))

    return _with_specs(intrinsic, larger)


def _with_specs(intrinsic: Intrinsic, change: Callable[[TensorSpec], TensorSpec]) -> Intrinsic:
    return replace(
        intrinsic,
        inputs=tuple(map(change, intrinsic.inputs)),
        outputs=tuple(map(change, intrinsic.outputs)),
        nested=tuple(_with_specs(each, change) for each in intrinsic.nested),
    )
