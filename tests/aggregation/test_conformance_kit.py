"""The kit passes a correct aggregator and catches one that is broken on purpose, law by law."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.aggregator import Accumulator, Addition, AggregatorFactory, Total
from fcp_core.aggregation.release import Noise, Promise, Randomised, Release
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.aggregators import AggregatorConformance

INTRINSIC = Intrinsic(
    "total",
    (TensorSpec("in", DataType.INT64, (2,)),),
    (TensorSpec("out", DataType.INT64, (2,)),),
)


class Good(Accumulator):
    """A sum of numbers below 50, with its state in JSON."""

    def __init__(self, intrinsic=INTRINSIC):
        self.intrinsic = intrinsic
        self.count = 0
        self.total = np.zeros(intrinsic.inputs[0].shape, np.int64)
        self.kept = []

    @classmethod
    def make(cls, intrinsic, options):
        if (len(intrinsic.inputs), len(intrinsic.outputs), len(intrinsic.nested)) != (1, 1, 0):
            raise StatusError(Code.INVALID_ARGUMENT, "one input and one output are expected")
        return cls(intrinsic)

    @classmethod
    def load(cls, intrinsic, options, data):
        self = cls(intrinsic)
        try:
            self.count, total, self.kept = json.loads(bytes(data))
            self.total[...] = total
        except (ValueError, TypeError, OverflowError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, "not a dump") from error
        return self

    @property
    def num_inputs(self):
        return self.count

    def validate(self, inputs):
        if (inputs[0] >= 50).any():
            raise StatusError(Code.INVALID_ARGUMENT, "too large")

    def accumulate(self, inputs):
        self.total += inputs[0]
        self.count += 1

    def merge(self, other):
        if other.intrinsic != self.intrinsic:
            raise StatusError(Code.INVALID_ARGUMENT, "another configuration")
        self.total += other.total
        self.count += other.count

    def report(self):
        return [self.total]

    def dump(self):
        return json.dumps([self.count, self.total.tolist(), self.kept]).encode()


def factory(cls, **changes):
    fields = {
        "name": "good",
        "uris": frozenset({"total"}),
        "summary": "a sum",
        "make": cls.make,
        "load": cls.load,
    }
    return AggregatorFactory(**(fields | changes))


class Laws(AggregatorConformance):
    factory = factory(Good)
    intrinsic = INTRINSIC
    max_examples = 50
    shrink = False

    def contributions(self):
        number = st.integers(-49, 49)
        return st.lists(number, min_size=2, max_size=2).map(lambda v: [np.array(v, np.int64)])

    def refused(self):
        return st.integers(50, 99).map(lambda v: [np.array([v, 0], np.int64)])

    def reference(self, contributions):
        return [sum((item[0] for item in contributions), np.zeros(2, np.int64))]


class TestGood(Laws):
    """The laws hold for the correct one, or what follows would prove nothing."""


class Adds(Good):
    """It only adds, and says so."""

    def __init__(self, intrinsic=INTRINSIC):
        super().__init__(intrinsic)
        self.sum = Total(self.total)

    @property
    def total(self):
        return self.sum.array

    @total.setter
    def total(self, array):
        self.sum = Total(array)

    def additions(self):
        return [Addition(self.sum, 0)]

    def added(self, count):
        self.count += count


class TestAdds(Laws):
    """So they do for one whose contributions somebody else may add."""

    factory = factory(Adds)
    max_examples = 5


class AddsTwice(Adds):
    def additions(self):
        return [Addition(self.sum, 0), Addition(self.sum, 0)]


class BeginsAtOne(Adds):
    def __init__(self, intrinsic=INTRINSIC):
        super().__init__(intrinsic)
        self.total += 1

    def merge(self, other):
        super().merge(other)
        self.total -= 1

    def report(self):
        return [self.total - 1]


class AnythingGoes(Good):
    @classmethod
    def make(cls, intrinsic, options):
        return cls()


class WrongDtype(Good):
    def report(self):
        return [self.total.astype(np.float64)]


class Twice(Good):
    def accumulate(self, inputs):
        self.total += 2 * inputs[0]
        self.count += 1


class Miscounts(Good):
    def merge(self, other):
        self.total += other.total


class LastWins(Good):
    def accumulate(self, inputs):
        self.total[...] = inputs[0]
        self.count += 1


class MeanOfMeans(Good):
    def merge(self, other):
        self.total = (self.total + other.total) // 2
        self.count += other.count


class Subtracts(Good):
    def merge(self, other):
        self.total -= other.total
        self.count += other.count


class Drains(Good):
    def merge(self, other):
        super().merge(other)
        other.total[...] = 0


class Forgets(Good):
    @classmethod
    def load(cls, intrinsic, options, data):
        self = super().load(intrinsic, options, data)
        self.total[...] = 0
        return self


class KeepsTheState(Good):
    """It reads the state that it was lent only when it reports."""

    given = None

    @classmethod
    def load(cls, intrinsic, options, data):
        self = super().load(intrinsic, options, data)
        self.given = data
        return self

    def report(self):
        if self.given is not None:
            json.loads(bytes(self.given))
        return super().report()


class Aliases(Good):
    """Its dump is a window on the live state."""

    def dump(self):
        return memoryview(self.total)

    @classmethod
    def load(cls, intrinsic, options, data):
        self = cls()
        self.total = np.frombuffer(data, np.int64)
        return self


class Crashes(Good):
    @classmethod
    def load(cls, intrinsic, options, data):
        self = cls()
        self.count, self.total[...], self.kept = json.loads(data)
        return self


class CountsWhatItChecks(Good):
    def validate(self, inputs):
        super().validate(inputs)
        self.total += inputs[0]


class RefusesTooLate(Good):
    def validate(self, inputs):
        self.total += inputs[0]
        try:
            super().validate(inputs)
        finally:
            self.count += 1


class KeepsTheBuffer(Good):
    def accumulate(self, inputs):
        self.total = inputs[0] if not self.count else self.total + inputs[0]
        self.count += 1


class WantsAligned(Good):
    def accumulate(self, inputs):
        if not inputs[0].flags.aligned:
            raise ValueError("not aligned")
        super().accumulate(inputs)


class MergesAnything(Good):
    def merge(self, other):
        self.total += other.total
        self.count += other.count


class WrapsAround(Good):
    """It adds in 32 bits."""

    def accumulate(self, inputs):
        self.total = (self.total + inputs[0]).astype(np.int32).astype(np.int64)
        self.count += 1


class Hoards(Good):
    def accumulate(self, inputs):
        super().accumulate(inputs)
        self.kept.append(inputs[0].tolist())


BROKEN = [
    ("test_the_factory_describes_itself", Good, {"summary": ""}),
    ("test_the_factory_describes_itself", Good, {"uris": frozenset({"other"})}),
    (
        "test_the_factory_and_its_options_pickle",
        Good,
        {"make": lambda intrinsic, options: Good()},
    ),
    ("test_an_intrinsic_that_does_not_fit_is_refused", AnythingGoes, {}),
    ("test_the_result_is_what_the_intrinsic_promises", WrongDtype, {}),
    ("test_the_result_is_that_of_the_reference", Twice, {}),
    ("test_inputs_are_counted", Miscounts, {}),
    ("test_the_order_does_not_matter", LastWins, {}),
    ("test_shards_that_are_merged_equal_one", MeanOfMeans, {}),
    ("test_merge_commutes", Subtracts, {}),
    ("test_merge_associates", MeanOfMeans, {}),
    ("test_merge_leaves_the_other_alone", Drains, {}),
    ("test_a_loaded_dump_goes_on", Forgets, {}),
    ("test_a_dump_is_a_copy", Aliases, {}),
    ("test_a_dump_is_a_copy", KeepsTheState, {"loads_views": True}),
    ("test_garbage_is_not_loaded", Crashes, {}),
    ("test_validation_changes_nothing", CountsWhatItChecks, {}),
    ("test_a_refused_contribution_leaves_the_state", RefusesTooLate, {}),
    ("test_a_contribution_is_not_kept_or_changed", KeepsTheBuffer, {}),
    ("test_an_unaligned_contribution_counts_the_same", WantsAligned, {}),
    ("test_additions_do_what_accumulate_does", AddsTwice, {}),
    ("test_additions_do_what_accumulate_does", BeginsAtOne, {}),
    ("test_another_configuration_is_not_merged", MergesAnything, {}),
    ("test_numbers_of_any_size_are_right_or_refused", WrapsAround, {}),
    ("test_the_state_does_not_grow_with_the_contributions", Hoards, {}),
]


def name_of(value):
    """Name a parameter alike in every process: without the address of an object."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", value)


@pytest.mark.parametrize(("law", "cls", "changes"), BROKEN, ids=name_of)
def test_the_kit_catches(law, cls, changes):
    class Broken(Laws):
        factory = factory(cls, **changes)

    check = getattr(Broken(), law)
    with pytest.raises((Exception, pytest.fail.Exception)):
        check()


class Noisy(Good, Randomised):
    """A mean of floats around which it draws with a standard deviation of 2."""

    stated, own = 2.0, False

    def promise(self, context):
        return Promise({"type": "zcdp", "rho": 0.5}, (Noise("out", "gaussian", self.stated),))

    def release(self, context):
        seed = None if self.own else int.from_bytes(context.entropy(8), "big")
        drawn = 2.0 * np.random.default_rng(seed).standard_normal(2)
        return Release([drawn.astype(np.float32)], self.promise(context))


class DrawsByItself(Noisy):
    own = True


class SaysHalf(Noisy):
    stated = 1.0


class SaysNothing(Noisy):
    """It draws no noise, and says so."""

    stated = 0.0


NOISY = Intrinsic("total", INTRINSIC.inputs, (TensorSpec("out", DataType.FLOAT, (2,)),))
DRAWN = [
    ("test_a_result_is_drawn_with_the_entropy_that_is_given", DrawsByItself),
    ("test_the_noise_is_as_it_is_described", SaysHalf),
    ("test_the_noise_is_as_it_is_described", SaysNothing),
]


def check_drawn(law, cls):
    class Drawn(Laws):
        factory = factory(cls, randomised=True)
        intrinsic = NOISY

    getattr(Drawn(), law)()


@pytest.mark.parametrize(("law", "cls"), DRAWN, ids=name_of)
def test_the_kit_catches_noise_that_is_not_what_is_said(law, cls):
    check_drawn(law, Noisy)
    with pytest.raises((Exception, pytest.fail.Exception)):
        check_drawn(law, cls)


def test_every_law_has_a_broken_implementation():
    laws = {name for name in dir(AggregatorConformance) if name.startswith("test_")}
    assert {law for law, *_ in (*BROKEN, *DRAWN)} == laws
