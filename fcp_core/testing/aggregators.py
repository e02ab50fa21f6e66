"""The conformance kit of aggregators: subclass, name a factory, run with pytest.

An example, complete::

    class TestTrimmedMean(AggregatorConformance):
        factory = my_plugin.TRIMMED_MEAN
        intrinsic = Intrinsic(
            "federated_mean",
            inputs=(TensorSpec("v", DataType.FLOAT, (3,)),),
            outputs=(TensorSpec("m", DataType.FLOAT, (3,)),),
        )
"""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import replace

import numpy as np

from fcp_core.aggregation.configuration import flat_inputs, flat_outputs
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import MissingExtraError
from fcp_core.protocol.status import StatusError
from fcp_core.testing.aggregator_noise import NoiseLaws
from fcp_core.testing.aggregator_subject import Contribution
from fcp_core.testing.laws import applies_if
from fcp_core.testing.tensor_strategies import tensors, unaligned

try:
    import pytest
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("the conformance kit", "testing") from error

__all__ = ["AggregatorConformance", "tensors"]

#: How much a state may grow by counters alone.
_STATE_GROWTH = 64


def _only_adds(kit: type[AggregatorConformance]) -> bool:
    try:
        return kit().make().additions() is not None
    except Exception:  # what cannot be made, or not yet, is for the laws to say
        return True


def _keeps_nothing(kit: type[AggregatorConformance]) -> bool:
    factory = getattr(kit, "factory", None)
    return factory is None or not factory.needs_all_inputs


class AggregatorConformance(NoiseLaws):
    """The laws of :mod:`fcp_core.aggregation.aggregator`, checked for one factory.

    Override :meth:`contributions` if not every tensor of the right dtype and shape is acceptable,
    :meth:`refused` if some are not, :meth:`reference` if a plain NumPy function says what the
    result is, and :meth:`normalise` if the order of the result's rows has no meaning.
    """

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, and serves the intrinsic (or all that it joins)."""
        factory = self.factory
        assert factory.name
        assert factory.summary
        assert "\n" not in factory.summary
        served = self.intrinsic.nested if factory.joint else (self.intrinsic,)
        assert {intrinsic.uri for intrinsic in served} <= factory.uris

    def test_the_factory_and_its_options_pickle(self) -> None:
        """Another process can be given the aggregator that it is to run."""
        factory, options = pickle.loads(pickle.dumps((self.factory, dict(self.options))))
        assert factory == self.factory
        assert factory.make(self.intrinsic, options).num_inputs == 0

    def test_an_intrinsic_that_does_not_fit_is_refused(self) -> None:
        """One output too many, an unknown parameter or a stranger nested inside: StatusError."""
        extra = TensorSpec("extra", DataType.FLOAT, ())
        for broken in (
            replace(self.intrinsic, outputs=(*self.intrinsic.outputs, extra)),
            replace(self.intrinsic, nested=(*self.intrinsic.nested, Intrinsic("no such thing"))),
        ):
            with pytest.raises(StatusError):
                self.factory.make(broken, self.options)

    def test_the_result_is_what_the_intrinsic_promises(self) -> None:
        """A tensor for each output, of its dtype and shape, for no contribution and for many."""

        def law(contributions: list[Contribution]) -> None:
            accumulator = self.fold(contributions)
            if not accumulator.can_report():
                return
            result = accumulator.report()
            specs = list(flat_outputs(self.intrinsic))
            assert len(result) == len(specs)
            for spec, tensor in zip(specs, result, strict=True):
                assert spec.matches(tensor), f"{spec} is reported as {tensor.dtype}{tensor.shape}"

        self._check(law, self._many())

    @applies_if(lambda kit: kit.reference is not AggregatorConformance.reference)
    def test_the_result_is_that_of_the_reference(self) -> None:
        """It equals what the plain NumPy function computes."""

        def law(contributions: list[Contribution]) -> None:
            expected = self.reference(contributions)
            if expected is None:
                pytest.skip("no reference is given")
            self._assert_equal(self.fold(contributions).report(), expected)

        self._check(law, self._many())

    @applies_if(lambda kit: kit.reference is not AggregatorConformance.reference)
    def test_numbers_of_any_size_are_right_or_refused(self) -> None:
        """What is accepted of tiny and of huge numbers counts as the reference says."""

        def of_size(size: int, contributions: list[Contribution]) -> None:
            accumulator, kept = self.make(), []
            for contribution in contributions:
                numbers = self.resized(contribution, size)
                with contextlib.suppress(StatusError):
                    self.accumulate(accumulator, numbers)
                    kept.append(numbers)
            expected = self.reference(kept)
            if expected is not None and accumulator.can_report():
                self._assert_equal(accumulator.report(), expected, exact=False)

        def law(contributions: list[Contribution]) -> None:
            # Not a size for each: chance would leave out the huge ones now and then.
            for size in (-1, 0, 1):
                of_size(size, contributions)

        self._check(law, self._many())

    def test_inputs_are_counted(self) -> None:
        """num_inputs is the number of contributions, over merges and dumps too."""

        def law(left: list[Contribution], right: list[Contribution]) -> None:
            accumulator = self.fold(left)
            assert accumulator.num_inputs == len(left)
            accumulator.merge(self.fold(right))
            assert accumulator.num_inputs == len(left) + len(right)
            assert self.reload(accumulator).num_inputs == len(left) + len(right)

        self._check(law, self._many(), self._many())

    def test_the_order_does_not_matter(self) -> None:
        """Contributions in any order give one result."""

        def law(contributions: list[Contribution], data: st.DataObject) -> None:
            order = data.draw(st.permutations(range(len(contributions))))
            self._assert_same(
                self.fold(contributions), self.fold([contributions[index] for index in order])
            )

        self._check(law, self._many(), st.data())

    def test_shards_that_are_merged_equal_one(self) -> None:
        """Contributions split over several accumulators, merged, equal one accumulator."""

        def law(contributions: list[Contribution], data: st.DataObject) -> None:
            shards = [self.make() for _ in range(data.draw(st.integers(1, 4)))]
            for contribution in contributions:
                self.accumulate(data.draw(st.sampled_from(shards)), contribution)
            first, *others = shards
            for other in others:
                first.merge(other)
            self._assert_same(first, self.fold(contributions))

        self._check(law, self._many(), st.data())

    def test_merge_commutes(self) -> None:
        """Left with right equals right with left, and an empty one changes nothing."""

        def law(left: list[Contribution], right: list[Contribution]) -> None:
            one, other = self.fold(left), self.fold(right)
            one.merge(self.fold(right))
            other.merge(self.fold(left))
            self._assert_same(one, other)
            for with_empty in (self.fold(left), self.make()):
                with_empty.merge(self.make() if with_empty.num_inputs else self.fold(left))
                self._assert_same(with_empty, self.fold(left))

        self._check(law, self._many(), self._many())

    def test_merge_associates(self) -> None:
        """(a with b) with c equals a with (b with c)."""

        def law(a: list[Contribution], b: list[Contribution], c: list[Contribution]) -> None:
            left = self.fold(a)
            left.merge(self.fold(b))
            left.merge(self.fold(c))
            inner, right = self.fold(b), self.fold(a)
            inner.merge(self.fold(c))
            right.merge(inner)
            self._assert_same(left, right)

        self._check(law, self._many(), self._many(), self._many())

    def test_merge_leaves_the_other_alone(self) -> None:
        """What is merged is not changed, then or when the first goes on."""

        def law(left: list[Contribution], right: list[Contribution]) -> None:
            one, other = self.fold(left), self.fold(right)
            before = other.dump()
            one.merge(other)
            for contribution in left:
                self.accumulate(one, contribution)
            assert other.dump() == before

        self._check(law, self._many(), self._many())

    def test_another_configuration_is_not_merged(self) -> None:
        """Other parameters, dtypes or sizes are refused with StatusError, and change nothing."""

        def law(contributions: list[Contribution], data: st.DataObject) -> None:
            for intrinsic, other in self.others():
                strategies = [tensors(spec) for spec in flat_inputs(intrinsic)]
                with contextlib.suppress(StatusError):
                    self.accumulate(other, list(data.draw(st.tuples(*strategies))))
                accumulator = self.fold(contributions)
                before = accumulator.dump()
                with pytest.raises(StatusError):
                    accumulator.merge(other)
                assert accumulator.dump() == before

        self._check(law, self._many(), st.data())

    def test_a_loaded_dump_goes_on(self) -> None:
        """Dumping and loading at any point changes nothing afterwards."""

        def law(before: list[Contribution], after: list[Contribution]) -> None:
            accumulator = self.reload(self.reload(self.fold(before)))
            for contribution in after:
                self.accumulate(accumulator, contribution)
            self._assert_same(accumulator, self.fold(before + after))

        self._check(law, self._many(), self._many())

    def test_a_dump_is_a_copy(self) -> None:
        """A dump is not changed by what is accumulated later, and what is loaded has its own."""

        def law(before: list[Contribution], after: list[Contribution]) -> None:
            accumulator = self.fold(before)
            dumped = accumulator.dump()
            assert b"".join(accumulator.pieces()) == dumped, "the pieces are the dump"
            lent = bytearray(dumped)
            given = memoryview(lent) if self.factory.loads_views else dumped
            loaded = self.factory.load(self.intrinsic, self.options, given)
            lent[:] = bytes(len(lent))
            for contribution in after:
                self.accumulate(accumulator, contribution)
            self._assert_same(loaded, self.fold(before))

        self._check(law, self._many(), self._many())

    def test_garbage_is_not_loaded(self) -> None:
        """Bytes that are no dump, or a part of one, raise StatusError and nothing else."""
        empty = self.make().dump()

        def law(garbage: bytes, contributions: list[Contribution], data: st.DataObject) -> None:
            dump = self.fold(contributions).dump()
            cut = dump[: data.draw(st.integers(0, len(dump) - 1))]
            for broken in (b"\xff" + garbage, cut):
                if broken == empty:
                    continue
                with pytest.raises(StatusError):
                    self.factory.load(self.intrinsic, self.options, broken)
            with contextlib.suppress(StatusError):
                self.factory.load(self.intrinsic, self.options, garbage)

        self._check(law, st.binary(max_size=40), self._many(min_size=1), st.data())

    def test_validation_changes_nothing(self) -> None:
        """A contribution that is validated and never accumulated leaves no trace."""

        def law(contributions: list[Contribution], other: Contribution) -> None:
            accumulator = self.fold(contributions)
            before = accumulator.dump()
            accumulator.validate(other)
            assert accumulator.dump() == before
            self._assert_same(accumulator, self.fold(contributions))

        self._check(law, self._many(), self.contributions())

    @applies_if(lambda kit: kit.refused is not AggregatorConformance.refused)
    def test_a_refused_contribution_leaves_the_state(self) -> None:
        """What validate refuses, it refuses with StatusError and without a trace."""
        refused = self.refused()
        if refused is None:
            pytest.skip("the aggregator refuses no values")

        def law(contributions: list[Contribution], bad: Contribution) -> None:
            accumulator = self.fold(contributions)
            before = accumulator.dump()
            with pytest.raises(StatusError):
                accumulator.validate(bad)
            assert accumulator.dump() == before

        self._check(law, self._many(), refused)

    def test_a_contribution_is_not_kept_or_changed(self) -> None:
        """It may be a read-only view on a buffer that is used for something else afterwards."""

        def law(contributions: list[Contribution]) -> None:
            accumulator = self.make()
            for contribution in contributions:
                buffers = [tensor.copy() for tensor in contribution]
                views = [buffer.view() for buffer in buffers]
                for view in views:
                    view.flags.writeable = False
                self.accumulate(accumulator, views)
                for buffer in buffers:
                    buffer[...] = b"overwritten" if buffer.dtype == object else 77
            self._assert_same(accumulator, self.fold(contributions))

        self._check(law, self._many())

    def test_an_unaligned_contribution_counts_the_same(self) -> None:
        """It may begin at any address: tensors are views on the bytes of a checkpoint."""

        def law(contributions: list[Contribution]) -> None:
            shifted = [[unaligned(tensor) for tensor in item] for item in contributions]
            self._assert_same(self.fold(shifted), self.fold(contributions))

        self._check(law, self._many())

    @applies_if(_only_adds)
    def test_additions_do_what_accumulate_does(self) -> None:
        """What the accumulator names as its additions, made one by one, gives the same result."""
        specs = list(flat_inputs(self.intrinsic))

        def law(contributions: list[Contribution]) -> None:
            accumulator = self.make()
            for addition in accumulator.additions() or ():
                assert not addition.total.array.any(), "a total begins with zeros"
                # Whoever folds may move the elements.
                addition.total.array = addition.total.array.copy()
            for contribution in contributions:
                accumulator.validate(contribution)
                for addition in accumulator.additions() or ():
                    total, value = addition.total.array, contribution[addition.value]
                    dtype = specs[addition.value].dtype
                    wide = dtype is DataType.INT32 and total.dtype == DataType.INT64.numpy
                    assert wide or total.dtype == dtype.numpy
                    assert total.size == value.size
                    if addition.weight is not None:
                        weight = contribution[addition.weight].reshape(())
                        value = value * total.dtype.type(weight[()])
                    np.add(total, value.reshape(total.shape), out=total)
                accumulator.added(1)
            assert accumulator.num_inputs == len(contributions)
            loaded = self.reload(accumulator)
            self._assert_same(accumulator, self.fold(contributions))
            self._assert_same(loaded, self.fold(contributions))

        self._check(law, self._many())

    @applies_if(_keeps_nothing)
    def test_the_state_does_not_grow_with_the_contributions(self) -> None:
        """Unless the factory says that it needs all inputs, it keeps none of them."""

        def law(contribution: Contribution) -> None:
            few, many = self.fold([contribution] * 2), self.fold([contribution] * 80)
            assert len(many.dump()) <= len(few.dump()) + _STATE_GROWTH

        self._check(law, self.contributions())
