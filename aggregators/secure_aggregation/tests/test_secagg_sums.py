"""What takes the sums of cohorts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.aggregands import MODULAR_URI, SUM_URI
from fcp_secagg.sums import FACTORY, MEDIAN_FACTORY, TRIMMED_FACTORY


def intrinsic(uri, parameter):
    spec = TensorSpec("v", DataType.INT64, (2,))
    output = TensorSpec("total", DataType.INT64, (2,))
    return Intrinsic(uri, (spec,), (output,), (Parameter("", np.array(parameter)),))


def filled(factory, of, values):
    made = factory.make(of, {})
    for value in values:
        inputs = [np.array([value, 2 * value], np.int64)]
        made.validate(inputs)
        made.accumulate(inputs)
    return made


def trimmed(values):
    out = len(values) // 10
    kept = sorted(values)[out : len(values) - out]
    return sum(kept) * len(values) // len(kept) if kept else 0


SUMS = st.lists(st.integers(0, 10**15), max_size=11)


@given(SUMS, SUMS)
@pytest.mark.parametrize(
    ("factory", "of", "wanted"),
    [
        (FACTORY, intrinsic(SUM_URI, 10**16), sum),
        (FACTORY, intrinsic(MODULAR_URI, 97), lambda values: sum(values) % 97),
        (
            MEDIAN_FACTORY,
            intrinsic(SUM_URI, 10**16),
            lambda v: (
                (sorted(v)[(len(v) - 1) // 2] + sorted(v)[len(v) // 2]) * len(v) // 2 if v else 0
            ),
        ),
        (TRIMMED_FACTORY, intrinsic(SUM_URI, 10**16), trimmed),
    ],
    ids=["sum", "modular", "median", "trimmed"],
)
def test_parts_that_are_dumped_and_merged_are_the_whole(factory, of, wanted, left, right):
    whole = filled(factory, of, left)
    whole = factory.load(of, {}, whole.dump())
    other = filled(factory, of, right)
    whole.validate_merge(other)
    whole.merge(other)
    assert whole.num_inputs == len(left + right)
    (total,) = whole.report()
    assert total[0] == wanted(left + right)


def test_what_does_not_fit_is_refused():
    made = filled(FACTORY, intrinsic(SUM_URI, 10), [2**62 - 1])
    for wrong, code in (([2**62 + 1, 0], Code.OUT_OF_RANGE), ([-1, 0], Code.INVALID_ARGUMENT)):
        with pytest.raises(StatusError) as caught:
            made.validate([np.array(wrong, np.int64)])
        assert caught.value.code is code
    for factory in (MEDIAN_FACTORY, TRIMMED_FACTORY):
        with pytest.raises(StatusError, match="go round"):
            factory.make(intrinsic(MODULAR_URI, 97), {})
    for factory in (FACTORY, MEDIAN_FACTORY, TRIMMED_FACTORY):
        with pytest.raises(StatusError, match="not the state"):
            factory.load(intrinsic(SUM_URI, 10), {}, b"garbage")


@pytest.mark.parametrize("factory", [MEDIAN_FACTORY, TRIMMED_FACTORY])
def test_a_rule_whose_value_is_beyond_the_dtype_is_an_error_and_no_other_number(factory):
    """Three sums of 0, x and x, whose median times three is 1.5 times what they sum up to."""
    options = {"fraction": 0.34} if factory is TRIMMED_FACTORY else {}
    made = factory.make(intrinsic(SUM_URI, 10), options)
    for value in (0, 2**62 - 1, 2**62 - 1):
        made.validate([np.array([value, 0], np.int64)])
        made.accumulate([np.array([value, 0], np.int64)])
    with pytest.raises(StatusError) as caught:
        made.report()
    assert caught.value.code is Code.OUT_OF_RANGE


def test_a_trimmed_mean_leaves_out_the_poisoned_cohort():
    made = TRIMMED_FACTORY.make(intrinsic(SUM_URI, 10**16), {"fraction": 0.25})
    for value in (10, 11, 10**12, 12):
        made.accumulate([np.array([value, 0], np.int64)])
    assert made.report()[0].tolist() == [(11 + 12) * 4 // 2, 0]
    with pytest.raises(StatusError, match=r"below 0\.5"):
        TRIMMED_FACTORY.make(intrinsic(SUM_URI, 10), {"fraction": 0.5})
    with pytest.raises(StatusError, match="one configuration"):
        made.validate_merge(TRIMMED_FACTORY.make(intrinsic(SUM_URI, 10**16), {"fraction": 0.1}))
