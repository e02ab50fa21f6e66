"""Federated programs under secure aggregation, with devices that talk HTTP."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

import fcp_platform
from fcp_core.plugins import hookimpl
from fcp_secagg import plugin
from fcp_secagg.device import SecureAggregationDevice
from tests.platform.programs import CONFIG, DATA, devices, holding, serving, source

pytestmark = [pytest.mark.tff, pytest.mark.slow]

SECURE = {
    "protocol.secagg.minimum": 3,
    "protocol.secagg.dropout_rate": 0.0,
    "protocol.secagg.adversary": "curious_server",
    "protocol.secagg.polling_interval": "20ms",
    "protocol.secagg.join_timeout": "60s",
}
#: In one line: the population's tasks, or those of the program.
WAYS = [pytest.param({"protocol": "secagg"}, {}, id="configured")]
WAYS.append(pytest.param({}, {"protocol": "secagg"}, id="routed"))
NUMBERS = (1, 4, 6)


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int32))


@tff.tensorflow.computation(np.int32)
def as_floats(number: Any) -> Any:
    value = tf.cast(number, tf.float32)
    return tf.stack([value / 10, -value / 10, 0.25])


class Sums:
    """Remembers what was accumulated."""

    def __init__(self) -> None:
        self.contributed = 0

    @hookimpl
    def fcp_event(self, event: Any) -> None:
        self.contributed += type(event).__name__ == "Contributed"


def run(comp: Any, config: Any, fields: Any, state: Any = 0) -> Any:
    """Run one round of three devices; return the metrics."""
    events = Sums()
    config, plugins = {**CONFIG, **SECURE, **config}, [plugin, events]
    # A cohort is as large as the task over-selects, and there are three devices.
    options = {"plan_cache": None, "deadline": 120.0, "over_selection": 1.0, **fields}

    async def program() -> Any:
        computation = fcp_platform.FederatedComputation(comp, name="secure")
        _, metrics = computation(state, source().iterator().select(3))
        return await tff.program.materialize_value(metrics)

    with (
        serving(config=config, plugins=plugins, **options) as context,
        devices(context, holding(*NUMBERS), protocols=[SecureAggregationDevice()]),
    ):
        result = asyncio.run(program())
    assert events.contributed == 3
    return result


STATE = tff.FederatedType(np.int32, tff.SERVER)


@pytest.mark.parametrize(("config", "fields"), WAYS)
def test_the_secure_sums_of_tff_and_what_goes_in_the_clear_beside_them(
    config: Any, fields: Any
) -> None:
    @tff.federated_computation(STATE, DATA)
    def comp(state: Any, data: Any) -> Any:
        n = tff.federated_map(total, data)
        return state, collections.OrderedDict(
            bounded=tff.federated_secure_sum(tff.federated_zip((n, n)), (100, 30)),
            bits=tff.federated_secure_sum_bitwidth(n, 8),
            modular=tff.backends.mapreduce.federated_secure_modular_sum(n, 7),
            plain=tff.federated_sum(n),
            mean=tff.federated_mean(tff.federated_map(as_floats, n)),
        )

    found = run(comp, config, fields)
    assert [int(value) for value in found["bounded"]] == [11, 11]
    assert int(found["bits"]) == 11
    assert int(found["modular"]) == 11 % 7
    assert int(found["plain"]) == 11
    assert np.allclose(found["mean"], [11 / 30, -11 / 30, 0.25])


def aggregated(factory: Any, kind: Any, convert: Any = None) -> Any:
    """Return a computation that aggregates a number of each device by a TFF aggregator."""
    process = factory.create(kind)

    @tff.federated_computation(process.initialize.type_signature.result, DATA)
    def comp(state: Any, data: Any) -> Any:
        value = tff.federated_map(total, data)
        if convert is not None:
            value = tff.federated_map(convert, value)
        output = process.next(state, value)
        return output.state, output.result

    return comp, process.initialize


VECTOR = tff.TensorType(np.float32, [3])
VECTORS = np.array([[n / 10, -n / 10, 0.25] for n in NUMBERS])
CLIPPED = 0.1 * VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("make", "kind", "convert", "wanted", "tolerance"),
    [
        # Clipped: 6 counts as 5.
        (lambda: tff.aggregators.SecureSumFactory(5, 0), tff.TensorType(np.int32), None, 10, 0),
        (
            lambda: tff.aggregators.SecureSumFactory(1.0, -1.0),
            VECTOR,
            as_floats,
            [1.1, -1.1, 0.75],
            1e-3,
        ),
        (
            lambda: tff.aggregators.SecureModularSumFactory(16),
            tff.TensorType(np.int32),
            None,
            11,
            0,
        ),
        (
            lambda: tff.aggregators.DifferentiallyPrivateFactory(
                tfp.NormalizedQuery(tfp.GaussianSumQuery(10.0, 1e-3), 3.0),
                tff.aggregators.SecureSumFactory(1.0, -1.0),
            ),
            VECTOR,
            as_floats,
            [1.1 / 3, -1.1 / 3, 0.25],
            0.05,
        ),
        (
            lambda: tff.learning.ddp_secure_aggregator(1e-3, 3),
            VECTOR,
            as_floats,
            # Each device's vector is clipped to the norm 0.1; the noise is far below that.
            CLIPPED.mean(axis=0),
            3e-3,
        ),
    ],
    ids=["clipped", "float", "modular", "dp", "ddp"],
)
def test_the_secure_aggregators_of_tff(
    make: Any, kind: Any, convert: Any, wanted: Any, tolerance: float
) -> None:
    comp, initialize = aggregated(make(), kind, convert)
    state = tff.backends.native.create_sync_local_cpp_execution_context().invoke(initialize, None)
    found = run(comp, {}, {"protocol": "secagg"}, state)
    assert np.allclose(found, wanted, atol=tolerance)


#: What the devices 1, 4 and 6 of the other tests have; all have "maps", 4 and 6 have "mail".
WORDS = ["maps", "mail maps", "mail maps chess maps"]


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def words(examples: Any) -> Any:
    def parse(text: Any) -> Any:
        number = tf.strings.to_number(text, tf.int32)
        place = tf.where(number > 4, 2, tf.where(number > 1, 1, 0))
        return tf.strings.split(tf.constant(WORDS)[place])

    return examples.map(parse)


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def numbers(examples: Any) -> Any:
    return examples.map(lambda text: tf.strings.to_number(text, tf.float32))


def test_heavy_hitters_are_found_in_sums_of_sketches_that_nobody_has_seen() -> None:
    find = tff.analytics.heavy_hitters.iblt.build_iblt_computation(
        capacity=10, string_max_bytes=8, k_anonymity=2, secure_sum_bitwidth=8
    )

    @tff.federated_computation(STATE, DATA)
    def comp(state: Any, data: Any) -> Any:
        found = find(tff.federated_map(words, data))
        return state, collections.OrderedDict(
            words=found.heavy_hitters, counts=found.heavy_hitters_counts, clients=found.clients
        )

    found = run(comp, {}, {"protocol": "secagg"})
    counts = dict(zip(found["words"].tolist(), found["counts"].tolist(), strict=True))
    assert counts == {b"maps": 4, b"mail": 2}
    assert found["clients"] == 3


@pytest.mark.parametrize("mechanism", ["no-noise", "distributed-discrete-gaussian"])
def test_a_hierarchical_histogram_is_summed_securely(mechanism: str) -> None:
    process = tff.analytics.build_hierarchical_histogram_process(
        0.0,
        8.0,
        4,
        max_records_per_user=1,
        dp_mechanism=mechanism,
        noise_multiplier=0.0 if mechanism == "no-noise" else 1e-3,
        expected_clients_per_round=3,
        bits=12,
    )

    @tff.federated_computation(process.initialize.type_signature.result, DATA)
    def comp(state: Any, data: Any) -> Any:
        output = process.next(state, tff.federated_map(numbers, data))
        return output[0], output[0].aggregated_hierarchical_histogram.flat_values

    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    state = runtime.invoke(process.initialize, None)
    found = run(comp, {}, {"protocol": "secagg"}, state)
    # All, by halves, by quarters.
    # The discrete noise of each of three devices has a standard deviation of one at least.
    assert np.allclose(found, [3, 1, 2, 1, 0, 1, 1], atol=0 if mechanism == "no-noise" else 10)
