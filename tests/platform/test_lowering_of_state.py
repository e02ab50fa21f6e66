"""Lowered computations with variables, tables, nested data and state, against TFF's own runtime."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_platform import encoding
from tests.platform.lowered import (
    CLIENTS,
    DATA,
    at_server,
    check,
    count,
    runtime,  # noqa: F401
    tf_map,
    total,
)

pytestmark = [pytest.mark.tff, pytest.mark.slow]


def test_variables_and_tables_start_anew(run_round: Callable[..., Any]) -> None:
    """A client graph with a table and a variable that changes."""

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def work(examples: Any) -> Any:
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["1", "40"], [10.0, 20.0]), 1.0
        )
        variable = tf.Variable(2.0)
        values = examples.map(table.lookup).reduce(np.float32(0), lambda a, b: a + b)
        with tf.control_dependencies([variable.assign_add(values)]):
            return variable.read_value()

    @tff.federated_computation(at_server(np.int32), DATA)
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_map(work, data))

    check(run_round, comp, 0)


def test_nested_data(run_round: Callable[..., Any]) -> None:
    data_type = tff.FederatedType(
        collections.OrderedDict(
            train=tff.SequenceType(np.str_),
            more=collections.OrderedDict(test=tff.SequenceType(np.str_)),
        ),
        tff.CLIENTS,
    )

    @tff.tensorflow.computation(data_type.member)
    def work(data: Any) -> Any:
        train = data["train"].reduce(np.int32(0), lambda n, _: n + 1)
        return train, data["more"]["test"].reduce(np.int32(0), lambda n, _: n + 1)

    @tff.federated_computation(at_server(np.int32), data_type)
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_map(work, data))

    clients = [
        {"data/train": [b"a", b"b"], "data/more/test": [b"c"]},
        {"data/train": [b"a"], "data/more/test": []},
    ]
    found = run_round(comp, 0, clients)
    assert (found["metrics/0"], found["metrics/1"]) == (3, 1)


def test_values_at_clients_and_state_at_result(run_round: Callable[..., Any]) -> None:
    """Values placed at clients, evaluated at clients and at the server, state used at the end."""

    @tff.federated_computation(at_server(np.float32), DATA)
    def comp(state: Any, data: Any) -> Any:
        seven = tff.federated_eval(
            tff.tensorflow.computation(lambda: tf.constant(7.0)), tff.CLIENTS
        )
        one = tff.federated_value(np.float32(1), tff.CLIENTS)
        x = tf_map(lambda a, b, c: a * b + c, tff.federated_map(total, data), seven, one)
        half = tff.federated_eval(tff.tensorflow.computation(lambda: tf.constant(0.5)), tff.SERVER)
        mean = tff.federated_mean(x)
        return tf_map(lambda s, m, h: s * h + m, state, mean, half), mean

    check(run_round, comp, 3.0)


def test_work_that_is_a_constant_beside_the_data(run_round: Callable[..., Any]) -> None:
    """What reads the data is folded to a constant; a control edge from the data is left."""

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def none_of_it(examples: Any) -> Any:
        with tf.control_dependencies([tf.data.experimental.to_variant(examples)]):
            return tf.identity(tf.constant(1.0))

    @tff.tensorflow.computation(np.float32)
    def times_nothing(value: Any) -> Any:
        return tf.zeros_like(value) + 2.0

    @tff.federated_computation(at_server(np.float32), DATA)
    def comp(state: Any, data: Any) -> Any:
        ones = tff.federated_sum(tff.federated_map(none_of_it, data))
        sent = tff.federated_map(times_nothing, tff.federated_broadcast(state))
        return tff.federated_map(times_nothing, state), (ones, tff.federated_sum(sent))

    check(run_round, comp, np.float32(7))


def test_least_and_greatest_of_uint64(run_round: Callable[..., Any]) -> None:
    """Their order is not that of the int64 of the same bits. TFF's own runtime has none of them."""

    @tff.tensorflow.computation(np.float32)
    def spread(value: Any) -> Any:
        high = tf.constant(2**64 - 100, tf.uint64)
        return tf.stack([tf.cast(value, tf.uint64), high + tf.cast(value, tf.uint64)])

    @tff.tensorflow.computation(np.float32)
    def about_the_middle(value: Any) -> Any:
        return tf.constant(2**63 - 10, tf.uint64) + tf.cast(value, tf.uint64)

    @tff.federated_computation(at_server(np.int32), DATA)
    def comp(state: Any, data: Any) -> Any:
        sums = tff.federated_map(total, data)
        values, middle = tff.federated_map(spread, sums), tff.federated_map(about_the_middle, sums)
        return state, collections.OrderedDict(
            least=tff.federated_min(values),
            greatest=tff.federated_max(values),
            least_in_the_middle=tff.federated_min(middle),
            greatest_in_the_middle=tff.federated_max(middle),
        )

    found = run_round(comp, 0, CLIENTS)  # the totals are 3, 40 and 11
    form = encoding.stored("", np.uint64)
    wanted = {
        "least": [3, 2**64 - 97],
        "greatest": [40, 2**64 - 60],
        "least_in_the_middle": 2**63 - 7,
        "greatest_in_the_middle": 2**63 + 30,
    }
    for name, value in wanted.items():
        assert form.decode_array(found[f"metrics/{name}"]).tolist() == value


def test_secure_select_sends_all_and_selects_on_the_device(run_round: Callable[..., Any]) -> None:
    value_type = collections.OrderedDict(
        words=tff.TensorType(np.str_, [3]), table=tff.TensorType(np.float32, [3])
    )

    @tff.tensorflow.computation(value_type, np.int32)
    def choose(value: Any, key: Any) -> Any:
        return collections.OrderedDict(
            number=value["table"][key], length=tf.strings.length(value["words"][key])
        )

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def client_keys(examples: Any) -> Any:
        return tf.stack([examples.reduce(np.int32(0), lambda n, _: n + 1) - 1, 2])

    @tff.tensorflow.computation(tff.SequenceType(choose.type_signature.result))
    def work(slices: Any) -> Any:
        start = (tf.constant(0.0), tf.constant(0))
        return slices.reduce(
            start, lambda state, one: (state[0] * 10 + one["number"], state[1] + one["length"])
        )

    @tff.federated_computation(at_server(value_type), DATA)
    def comp(state: Any, data: Any) -> Any:
        keys = tff.federated_map(client_keys, data)
        slices = tff.federated_secure_select(
            keys, tff.federated_value(2, tff.SERVER), state, choose
        )
        return state, tff.federated_sum(tff.federated_map(work, slices))

    state = {"words": np.array([b"a", b"bc", b"def"], object), "table": np.float32([1, 2, 4])}
    # TFF's own runtime has no secure select. The clients' keys are (1, 2), (0, 2) and (2, 2).
    found = run_round(comp, state, CLIENTS)
    assert found["metrics/0"] == 24 + 14 + 44
    assert found["metrics/1"] == 5 + 4 + 6


def test_devices_do_not_send_what_nothing_is_made_of(run_round: Callable[..., Any]) -> None:
    """As with the metrics of a process that a program leaves out of what it returns."""

    @tff.federated_computation(at_server(np.float32), DATA)
    def comp(state: Any, data: Any) -> Any:
        values, counts = tff.federated_map(total, data), tff.federated_map(count, data)
        sums = tff.federated_zip(
            collections.OrderedDict(loss=tff.federated_sum(values), mean=tff.federated_mean(values))
        )
        both = tff.federated_zip((tff.federated_sum(counts), sums))
        return tf_map(lambda state, pair: state + pair[1]["loss"], state, both), tf_map(
            lambda pair: pair[0], both
        )

    check(run_round, comp, np.float32(1))
    lowered = fcp_platform.FederatedComputation(comp, name="x").lowered
    assert sorted(lowered.aggregations.updates) == ["update/0", "update/1"]
    assert [config.intrinsic_uri for config in lowered.aggregations.configs] == [
        "federated_sum",
        "federated_sum",
    ]
