"""The kit of aggregators catches arithmetic that is right only for the numbers it always drew."""

import numpy as np
import pytest

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.aggregators import AggregatorConformance


def clip(vector):
    """Return a vector, or one of length 1 if it is longer."""
    return vector * min(1.0, 1 / max(np.linalg.norm(vector.astype("f8")), 1e-300))


class Clips(Accumulator):
    """A sum of vectors, each at most of length 1."""

    def __init__(self):
        self.total, self.count = np.zeros(2), 0

    num_inputs = property(lambda self: self.count)

    def validate(self, inputs):
        if not np.isfinite(inputs[0]).all():
            raise StatusError(Code.INVALID_ARGUMENT, "it is not finite")

    def clipped(self, vector):
        return clip(vector)

    def accumulate(self, inputs):
        self.total = self.total + self.clipped(inputs[0])
        self.count += 1

    def merge(self, other):
        raise NotImplementedError

    def report(self):
        return [self.total.astype(np.float32)]

    def dump(self):
        raise NotImplementedError


class Normalises(Clips):
    """Short vectors become longer; of whole numbers there is none but 0."""

    def clipped(self, vector):
        length = np.linalg.norm(vector.astype("f8"))
        return vector / length if length else vector


class SquaresInFloats(Clips):
    """The square of a huge length is infinite, and the vector nothing."""

    def clipped(self, vector):
        with np.errstate(over="ignore"):
            return vector * min(1.0, 1 / max(np.sqrt(np.sum(vector * vector)), 1e-30))


def kit(accumulator):
    class Kit(AggregatorConformance):
        factory = AggregatorFactory(
            "clips", frozenset({"clip"}), "clips", lambda *given: accumulator(), None
        )
        intrinsic = Intrinsic(
            "clip",
            (TensorSpec("in", DataType.FLOAT, (2,)),),
            (TensorSpec("out", DataType.FLOAT, (2,)),),
        )
        max_examples = 50
        shrink = False
        exact = False

        def reference(self, contributions):
            total = sum((clip(item[0].astype("f8")) for item in contributions), np.zeros(2))
            return [total.astype(np.float32)]

    return Kit()


def test_right_arithmetic_passes():
    kit(Clips).test_numbers_of_any_size_are_right_or_refused()


@pytest.mark.parametrize("fault", [Normalises, SquaresInFloats])
def test_the_kit_catches_what_whole_numbers_do_not_show(fault):
    kit(fault).test_the_result_is_that_of_the_reference()
    with pytest.raises(AssertionError):
        kit(fault).test_numbers_of_any_size_are_right_or_refused()
