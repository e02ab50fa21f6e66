"""What federated programs aggregate, select and work out on the server."""

from __future__ import annotations

import asyncio
import collections
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_aggregators.vector import VectorAccumulator
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code
from tests.platform.programs import (
    CONFIG,
    DATA,
    POPULATION,
    add,
    broadcast,
    devices,
    greatest,
    holding,
    serving,
    source,
    total,
)

pytestmark = [pytest.mark.tff, pytest.mark.slow]


def test_aggregate_on_the_server() -> None:
    @tff.tensorflow.computation(np.int64, np.int64)
    def longest(a: Any, b: Any) -> Any:
        return tf.maximum(a, b)

    @tff.tensorflow.computation(np.int64)
    def report(a: Any) -> Any:
        return tf.strings.join(["at most ", tf.strings.as_string(a)])

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        sums = tff.federated_map(total, data)
        return state, tff.federated_aggregate(sums, np.int64(0), longest, longest, report)

    computation = fcp_demo.FederatedComputation(comp, name="aggregate")

    async def program() -> Any:
        _, metrics = computation(0, source().iterator().select(3))
        return await metrics.get_value()

    with serving() as context, devices(context, holding(8, 8, 8)):
        assert asyncio.run(program()) == b"at most 8"


class Product(VectorAccumulator):
    """The product of what devices send: TFF has no such intrinsic."""

    def identity(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.ones(shape, dtype)

    def combine(self, vector: Any, value: Any) -> None:
        vector *= value


class Multiplies:
    @hookimpl
    def fcp_register_aggregators(self) -> list[AggregatorFactory]:
        def load(intrinsic: Any, options: Any, data: bytes) -> Product:
            return Product.load(intrinsic, options, data)

        return [AggregatorFactory("product", frozenset({"test:product"}), "", Product, load)]


def test_an_aggregator_with_a_uri_of_its_own() -> None:
    computation = fcp_demo.FederatedComputation(greatest, name="product")

    async def program() -> Any:
        _, metrics = computation(np.int64(0), source().iterator().select(3))
        return await tff.program.materialize_value(metrics)

    with (
        serving(
            plugins=[Multiplies()],
            uris={"federated_max": "test:product"},
            aggregators={"test:product": "product"},
        ) as context,
        devices(context, holding(7, 7, 7)),
    ):
        assert asyncio.run(program()) == 343
    # A server that has none refuses the round in words.
    with (
        serving(uris={"federated_max": "test:product"}),
        pytest.raises(fcp_demo.AggregationFailedError, match="test:product"),
    ):
        asyncio.run(program())


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        ({"federated_secure_sum": "mine"}, "federated_secure_sum' is none of federated_max"),
        ({"federated_map": "mine"}, "federated_map' is none of"),
        ({"federated_sum": "federated_mean"}, "is named by 'aggregators'"),
        ({"federated_sum": ""}, "must be the URI"),
    ],
)
def test_uris_that_no_aggregator_of_ones_own_can_have(uris: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fcp_demo.FederatedContext(POPULATION, uris=uris)


def test_uris_do_not_take_noise_away() -> None:
    with pytest.raises(ValueError, match="the server's noise"):
        fcp_demo.FederatedContext(POPULATION, uris={"federated_sum": "mine"}, dp="server")


def test_secure_sums_only_where_the_operator_allows() -> None:
    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def secure(state: Any, data: Any) -> Any:
        return state, tff.federated_secure_sum_bitwidth(tff.federated_map(total, data), 10)

    computation = fcp_demo.FederatedComputation(secure, name="secure")

    async def program() -> Any:
        _, sum_ = computation(0, source().iterator().select(2))
        return await sum_.get_value()

    with (
        serving(),
        pytest.raises(
            fcp_demo.AggregationFailedError,
            match=r"allow_unprotected = true in \[fcp:aggregator.federated_secure_sum_bitwidth\]",
        ) as error,
    ):
        asyncio.run(program())
    assert error.value.code is Code.FAILED_PRECONDITION
    allowed = {**CONFIG, "aggregator.federated_secure_sum_bitwidth.allow_unprotected": True}
    with serving(config=allowed) as context, devices(context, holding(4, 4)):
        assert asyncio.run(program()) == 8


def test_select_serves_slices() -> None:
    """Devices get the slices of their keys, in their order, repeated ones too."""
    value_type = collections.OrderedDict(
        table=tff.TensorType(np.float32, [6, 2]), words=tff.TensorType(np.str_, [6])
    )

    @tff.tensorflow.computation(value_type, np.int32)
    def choose(value: Any, key: Any) -> Any:
        row = tf.gather(value["table"], key)
        return collections.OrderedDict(
            row=row, word=tf.gather(value["words"], key), big=tf.cast(key, tf.uint64)
        )

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def client_keys(examples: Any) -> Any:
        first = examples.take(1).reduce("", lambda _, x: x)
        number = tf.strings.to_number(first, tf.int32)
        return tf.ensure_shape(tf.stack([number, 5, number]), [3])

    @tff.tensorflow.computation(tff.SequenceType(choose.type_signature.result))
    def work(slices: Any) -> Any:
        def step(state: Any, one: Any) -> Any:
            weight = tf.cast(one["big"], tf.float32) + 1
            total = state["total"] + weight * one["row"] * state["factor"]
            length = state["length"] + tf.strings.length(one["word"])
            return {"total": total, "factor": state["factor"] * 10, "length": length}

        start = {"total": tf.zeros([2]), "factor": tf.constant(1.0), "length": tf.constant(0)}
        end = slices.reduce(start, step)
        return end["total"], end["length"]

    @tff.federated_computation(tff.FederatedType(value_type, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        keys = tff.federated_map(client_keys, data)
        # A bound: there are no slices for the last three, and nobody asks for them.
        max_key = tff.federated_value(8, tff.SERVER)
        slices = tff.federated_select(keys, max_key, state, choose)
        return state, tff.federated_sum(tff.federated_map(work, slices))

    computation = fcp_demo.FederatedComputation(comp, name="select")
    # What all devices download is the name of the slices alone.
    assert [leaf.type.dtype.type for leaf in computation.lowered.broadcast] == [np.str_]
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    words = np.array([b"a" * number for number in range(6)], object)

    async def program() -> Any:
        state = collections.OrderedDict(table=table, words=words)
        _, metrics = computation(state, source().iterator().select(4))
        return await tff.program.materialize_value(metrics)

    with serving() as context, devices(context, holding(2, 2)):
        total, length = asyncio.run(program())
    np.testing.assert_allclose(total, 4 * (303 * table[2] + 60 * table[5]))
    assert length == 4 * (2 + 5 + 2)


def test_computations_without_a_new_state_or_any() -> None:
    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def evaluate(state: Any, data: Any) -> Any:
        values = tff.federated_map(add, (tff.federated_map(total, data), broadcast(state)))
        return tff.federated_sum(values)

    @tff.federated_computation(DATA)
    def count(data: Any) -> Any:
        sums = tff.federated_map(total, data)
        return collections.OrderedDict(all=tff.federated_sum(sums), most=tff.federated_max(sums))

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def named(state: Any, data: Any) -> Any:
        return collections.OrderedDict(only=evaluate(state, data))

    evaluation = fcp_demo.FederatedComputation(evaluate, name="evaluate")
    by_name = fcp_demo.FederatedComputation(named, name="named")
    stateless = fcp_demo.FederatedComputation(count, name="count")

    async def program() -> list[Any]:
        data = source().iterator().select(2)
        values = [evaluation(5, data), by_name(6, data), stateless(data)]
        return await tff.program.materialize_value(values)

    with serving() as context, devices(context, holding(7, 7)):
        only, both = {"only": 26}, {"all": 14, "most": 7}
        assert asyncio.run(program()) == [24, only, both]


def test_faults_of_the_servers_own_graphs() -> None:
    """Before devices are asked, and after they have worked: in words, not TensorFlow's."""

    @tff.tensorflow.computation(np.int64)
    def positive(value: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_positive(value, "is it positive?")]):
            return tf.identity(value)

    @tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        sent = broadcast(tff.federated_map(positive, state))
        sums = tff.federated_sum(tff.federated_map(add, (tff.federated_map(total, data), sent)))
        return state, tff.federated_map(positive, sums)

    computation = fcp_demo.FederatedComputation(comp, name="positive")

    async def program(state: int) -> None:
        _, metrics = computation(state, source().iterator().select(1))
        await metrics.get_value()

    where = {0: "before the broadcast", 3: "with the aggregate"}
    with serving() as context, devices(context, holding(-7)):
        for state, part in where.items():
            with pytest.raises(fcp_demo.AggregationFailedError) as error:
                asyncio.run(program(state))
            assert error.value.code is Code.INVALID_ARGUMENT
            assert str(error.value).startswith(
                f"Aggregation failed. positive: what the server does {part} failed: assertion "
                "failed: [is it positive?"
            )
            assert "\n" not in str(error.value)
