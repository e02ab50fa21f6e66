"""Distinct values in groups with noise: bounds of a device, the choice of groups, noise, laws."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import DP_DISTINCT_URI
from fcp_core.aggregation.release import ReleaseContext
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.protocol.sketches import distinct_codes
from fcp_core.protocol.status import StatusError
from fcp_core.testing.aggregators import AggregatorConformance
from fcp_privacy.codes import values_of
from fcp_privacy.distinct import DISTINCT
from fcp_privacy.events import Composed, EpsilonDelta, from_cost

KEY = TensorSpec("app", DataType.STRING, (-1,))


def intrinsic(**changes):
    parameters = {
        "epsilon": np.array(1.0),
        "delta": np.array(1e-6),
        "max_groups_contributed": np.array(2),
        "max_values": np.array(3),
        **{name: np.array(value) for name, value in changes.items()},
    }
    return Intrinsic(
        DP_DISTINCT_URI,
        (KEY, TensorSpec("codes", DataType.INT64, (-1,))),
        (KEY, TensorSpec("values", DataType.INT64, (-1,))),
        tuple(Parameter(name, value) for name, value in parameters.items()),
    )


def columns(rows):
    """Return what a device sends: rows of a key and a value."""
    keys = np.empty(len(rows), object)
    keys[:] = [key.encode() for key, _ in rows]
    return [keys, distinct_codes([value for _, value in rows])]


def of(devices, **options):
    accumulator = DISTINCT.make(intrinsic(**options), {})
    for rows in devices:
        contribution = columns(rows)
        accumulator.validate(contribution)
        accumulator.accumulate(contribution)
    return accumulator


def context(seed):
    def entropy(size):
        return hashlib.shake_256(f"{seed}".encode()).digest(size)

    return ReleaseContext(goal_count=1, entropy=entropy)


def found(tensors):
    return dict(zip((key.decode() for key in tensors[0]), tensors[1].tolist(), strict=True))


def test_each_group_has_its_distinct_values_and_small_ones_are_not_there():
    devices = [[("maps", n), ("maps", n + 1), ("mail", n % 5)] for n in range(200)]
    devices[3].append(("own", 1))
    accumulator = of(devices, epsilon=100.0, max_groups_contributed=3)
    assert found(accumulator.report()) == {
        "maps": pytest.approx(201, rel=0.05),
        "mail": 5,
        "own": 1,
    }
    for seed in range(20):
        released = accumulator.release(context(seed))
        (noise,) = released.promise.noise
        groups = found(released.tensors)
        assert set(groups) == {"maps", "mail"}
        assert abs(groups["maps"] - 201) < 8 * noise.stddev + 10
        assert abs(groups["mail"] - 5) < 8 * noise.stddev


def test_one_device_reaches_as_many_groups_and_codes_as_it_may():
    many = [(f"group {g}", f"value {v}") for g in range(9) for v in range(40)]
    groups = of([many]).report()
    # A code may stand for two of a device's values, so there are three or fewer.
    assert len(groups[0]) == 2
    assert all(1 <= count <= 4 for count in groups[1])
    seen = {key for _ in range(60) for key in found(of([many]).report())}
    assert len(seen) == 9  # chosen at random


def test_the_cost_is_that_of_the_choice_and_of_the_counts():
    promise = of([]).promise(context(0))
    choice, counts = EpsilonDelta(epsilon=0.5, delta=5e-7), None
    event = from_cost(promise.cost)
    assert isinstance(event, Composed)
    first, counts = event.events
    assert first == choice
    assert (counts.epsilon, counts.relation) == (0.5, "replace_one")
    assert counts.delta <= 5e-7
    # A device that is replaced changes four groups by three codes each.
    laplace = math.sqrt(2) * 12 / 0.5
    (noise,) = promise.noise
    assert noise.stddev <= laplace * 1.001
    gaussian = of([], max_groups_contributed=500).promise(context(0)).noise[0]
    assert gaussian.mechanism == "gaussian"
    assert gaussian.stddev < math.sqrt(2) * 3000 / 0.5


@pytest.mark.slow
def test_the_noise_is_as_wide_as_it_says():
    accumulator = of([[("maps", n)] for n in range(300)], epsilon=2.0)
    drawn = [found(accumulator.release(context(s)).tensors)["maps"] for s in range(400)]
    codes = found(accumulator.report())["maps"]
    stddev = accumulator.promise(context(0)).noise[0].stddev
    assert np.std(drawn) == pytest.approx(stddev, rel=0.3)
    assert np.mean(drawn) == pytest.approx(codes, abs=stddev / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"max_groups_contributed": 0},
        {"max_values": 1.5},
        {"max_values": [1, 2]},
        {"min_contributors_to_group": 0},
        {"more": 1},
    ],
)
def test_parameters_without_a_meaning_are_refused(changes):
    with pytest.raises(StatusError):
        DISTINCT.make(intrinsic(**changes), {})


def test_the_codes_of_all_groups_are_bounded():
    accumulator = DISTINCT.make(intrinsic(), {"max_groups": 3})
    accumulator.accumulate(columns([("a", 1), ("a", 2)]))
    with pytest.raises(StatusError, match="max_groups is 3"):
        accumulator.validate(columns([("b", 3), ("b", 4)]))
    accumulator.validate(columns([("a", 1), ("b", 2)]))


def test_keys_that_are_too_long_are_refused():
    with pytest.raises(StatusError, match="more than 256 bytes"):
        of([[("x" * 257, 1)]])


class TestDistinctGroups(AggregatorConformance):
    factory = DISTINCT
    max_examples = 15
    intrinsic = intrinsic(epsilon=20.0, delta=0.5, max_values=8, max_groups_contributed=4)

    def contributions(self):
        rows = st.tuples(st.sampled_from("abc"), st.integers(0, 30))
        return st.lists(rows, max_size=4).map(columns)

    def refused(self):
        keys = columns([("a", 1)])[0]
        return st.sampled_from([[keys, np.array([-1])], [keys, np.array([64 + 60])]])

    def normalise(self, result):
        order = np.argsort(result[0])
        return [column[order] for column in result]

    def reference(self, contributions):
        groups = {}
        for keys, codes in contributions:
            for key, code in zip(keys.tolist(), codes.tolist(), strict=True):
                groups.setdefault(key, set()).add(code)
        keys = np.empty(len(groups), object)
        keys[:] = list(groups)
        counts = [round(values_of(len(codes))[0]) for codes in groups.values()]
        return [keys, np.array(counts, np.int64)]
