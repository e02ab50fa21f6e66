"""The laws of randomised aggregators: what is drawn is what was promised."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np

from fcp_core.aggregation.aggregator import Accumulator
from fcp_core.aggregation.configuration import flat_outputs
from fcp_core.aggregation.release import Randomised, ReleaseContext
from fcp_core.aggregation.spec import DataType
from fcp_core.errors import MissingExtraError
from fcp_core.testing.aggregator_subject import AggregatorSubject, Contribution
from fcp_core.testing.laws import applies_if

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise MissingExtraError("the conformance kit", "testing") from error

#: How often a result is drawn to see whether its noise is as it is described.
_DRAWS = 400


def _draws(kit: type[AggregatorSubject]) -> bool:
    factory = getattr(kit, "factory", None)
    return factory is None or factory.randomised


def _seeded(seed: int) -> Callable[[int], bytes]:
    """Return a source of bytes that follow from a seed."""
    return random.Random(seed).randbytes


class NoiseLaws(AggregatorSubject):
    """What holds for a factory that says that it is randomised; others have none of these laws."""

    @applies_if(_draws)
    def test_a_result_is_drawn_with_the_entropy_that_is_given(self) -> None:
        """It follows from it, has the outputs' dtypes and shapes, and costs what JSON holds."""
        specs = list(flat_outputs(self.intrinsic))

        def law(contributions: list[Contribution], seed: int) -> None:
            promise = self._drawn(self.make()).promise(ReleaseContext(goal_count=3))
            assert json.loads(json.dumps(promise.cost)) == promise.cost
            json.dumps([noise.to_json() for noise in promise.noise])
            results = []
            for _ in range(2):
                context = ReleaseContext(goal_count=3, entropy=_seeded(seed))
                results.append(self._drawn(self.fold(contributions)).release(context).tensors)
            for spec, one, other in zip(specs, *results, strict=True):
                assert spec.matches(np.asarray(one))
                np.testing.assert_array_equal(one, other)

        self._check(law, self._many(), st.integers(0, 1 << 30))

    @applies_if(_draws)
    def test_the_noise_is_as_it_is_described(self) -> None:
        """Its standard deviation is the one stated, for outputs of floats whose shape is known."""
        drawn = []
        for seed in range(_DRAWS):
            context = ReleaseContext(goal_count=3, entropy=_seeded(seed))
            drawn.append(self._drawn(self.make()).release(context))
        stated = {noise.output: noise.stddev for noise in drawn[0].promise.noise}
        assert all(stated.values()), f"it is randomised, and states no noise: {stated}"
        if not stated:
            first, *others = (release.tensors for release in drawn)
            assert any(
                not np.array_equal(one, other)
                for result in others
                for one, other in zip(first, result, strict=True)
            ), "it is randomised, and nothing is drawn"
        for place, spec in enumerate(flat_outputs(self.intrinsic)):
            floats = spec.dtype in (DataType.FLOAT, DataType.DOUBLE)
            if not floats or not spec.is_fully_defined or not stated.get(spec.name):
                continue
            values = np.array([release.tensors[place] for release in drawn], np.float64)
            found = float(np.std(values - values.mean(axis=0)))
            # The square of Laplace noise spreads by the root of 5 times its mean.
            error = 5 * np.sqrt(5 / values.size) / 2
            assert abs(found / stated[spec.name] - 1) < error, (spec.name, found, stated)

    @staticmethod
    def _drawn(accumulator: Accumulator) -> Randomised:
        assert isinstance(accumulator, Randomised), "its factory says that it is randomised"
        return accumulator
