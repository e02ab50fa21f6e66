"""The protocol kit passes correct protocols, and catches those that are broken on purpose."""

import pytest

from fcp_core.testing import AggregationProtocolConformance
from fcp_core.testing.masked_sum import MASKED_SUM
from tests.testing_kit.kept_protocols import OPTIONS, Kept, Prepared, plain


class TestPlain(AggregationProtocolConformance):
    factory = plain.factory()


class TestMaskedSum(AggregationProtocolConformance):
    factory = MASKED_SUM
    options = OPTIONS
    group = 3
    patience = 90.0
    max_examples = 100


@pytest.mark.slow
class TestMaskedSumInPairs(TestMaskedSum):
    options = {**OPTIONS, "cohort": 2}
    group = 2


class TestKept(AggregationProtocolConformance):
    factory = plain.factory(Kept)

    def test_who_vanishes_after_that_counts(self):
        core = self.core()
        device = core.assign(self.results(3))
        while device.state != "kept":
            core.step(device)
        core.vanish(device)
        core.run(self.patience)
        assert device.state == "counted"
        self._check_end(core)


class TestWork(AggregationProtocolConformance):
    factory = plain.factory(Prepared)
