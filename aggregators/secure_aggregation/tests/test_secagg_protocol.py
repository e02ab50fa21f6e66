"""The protocol on the seam: the kit's laws, and cohorts."""

import random

import numpy as np

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.client.protocols import PlanResults
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.testing import AggregationProtocolConformance
from fcp_core.testing.protocol_core import KitCore
from fcp_secagg.aggregands import MODULAR_URI, SUM_URI
from fcp_secagg.device import SecureAggregationDevice
from fcp_secagg.plugin import FACTORY

OPTIONS = {
    "cohort": 4,
    "minimum": 3,
    "dropout_rate": 0.25,
    "adversarial_rate": 0.0,
    "adversary": "curious_server",
    "join_timeout": 30.0,
    "phase_timeout": 20.0,
    "polling_interval": 0.5,
}


def intrinsic(uri, name, dtype, shape, parameter=None):
    given = () if parameter is None else (Parameter("", np.array(parameter, np.int64)),)
    spec = TensorSpec(name, dtype, shape)
    return Intrinsic(uri, (spec,), (TensorSpec(f"{name}_total", dtype, shape),), given)


MIXED = [
    intrinsic(SUM_URI, "counts", DataType.INT64, (2,), 10**15),
    intrinsic(MODULAR_URI, "wheel", DataType.INT32, (3,), 1000),
    intrinsic("federated_sum", "plain", DataType.FLOAT, ()),
]


def configuration(intrinsics):
    return configuration_to_proto(intrinsics).SerializeToString()


class TestSecureAggregation(AggregationProtocolConformance):
    factory = FACTORY
    options = OPTIONS
    group = 4
    patience = 120.0
    max_examples = 25

    def spec(self):
        return super().spec().replace(aggregation=configuration(MIXED))

    def results(self, number):
        tensors = {
            "counts": np.array([10 ** (number % 15), number], np.int64),
            "wheel": np.array([number, 7 * number, 999], np.int32) % 1000,
            "plain": np.float32(number),
        }
        return PlanResults(write_checkpoint(tensors, "federated_compute"))

    def device(self):
        return SecureAggregationDevice(random.Random(0).randbytes)

    def check_total(self, contributed, accumulated):
        wanted = {"counts": [0, 0], "wheel": [0, 0, 0], "plain": 0}
        total = {"counts": [0, 0], "wheel": [0, 0, 0], "plain": 0}
        given = [results.checkpoint for results in contributed]
        for sums, checkpoints in ((wanted, given), (total, accumulated)):
            for data in checkpoints:
                for name, tensor in open_checkpoint(data).items():
                    sums[name] = sums[name] + np.asarray(tensor, np.float64)
            sums["wheel"] = np.mod(sums["wheel"], 1000)
        for name, value in wanted.items():
            assert np.array_equal(value, total[name]), name

    def test_a_device_that_vanishes_while_it_waits_for_the_end_counts_and_is_answered(self):
        core = self.core()
        devices = [core.assign(self.results(number)) for number in range(4)]
        while core.step(devices[0]) or "Unmask" not in devices[0].calls:
            for device in devices[1:]:
                core.step(device)
            while core.outcomes:
                core.finish(0)
        assert devices[0].state == "kept"
        core.vanish(devices[0])
        core.run(self.patience)
        assert [device.state for device in devices] == ["counted"] * 4
        assert devices[0].calls["Unmask"].answer is not None
        self._check_end(core)

    def test_a_cohort_does_not_wait_long_for_devices_that_only_stand_in_for_others(self):
        spec = self.spec().replace(goal_count=3, over_selection=4 / 3)
        core = KitCore(FACTORY, self.options, spec, self.device(), 0)
        devices = [core.assign(self.results(number)) for number in range(3)]
        core.run(OPTIONS["join_timeout"] / 10 + 1)
        assert [device.state for device in devices] == ["counted"] * 3
        self._check_end(core)
