"""Computations lowered, run as plans in stock TensorFlow and folded, against TFF's own runtime."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.protocol.status import StatusError
from fcp_platform import encoding, naming, values
from fcp_platform.runtime import LocalRuntime

pytestmark = [pytest.mark.tff, pytest.mark.slow]

DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
CLIENTS = [[b"1", b"2"], [b"40"], [b"3", b"3", b"5"]]


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[LocalRuntime]:
    with LocalRuntime() as running:
        yield running


def at_server(type_spec: Any) -> Any:
    return tff.FederatedType(type_spec, tff.SERVER)


def tf_map(function: Callable[..., Any], *values: Any) -> Any:
    """Map a Python function of tensors over federated values."""
    traced = tff.tensorflow.computation(function)
    return tff.federated_map(traced, values[0] if len(values) == 1 else values)


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.float32(0), lambda sum_, x: sum_ + tf.strings.to_number(x))


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def count(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda sum_, _: sum_ + 1)


def check(run_round: Callable[..., Any], comp: Any, state: Any, clients: Any = CLIENTS) -> None:
    """Compare a round with TFF's own; floats may differ by rounding."""
    expected = comp(state, clients)
    wanted_by_leaf: dict[naming.Leaf, Any] = {}
    for prefix, value, type_spec in zip(
        (naming.STATE, naming.METRICS), expected, comp.type_signature.result, strict=True
    ):
        leaves = values.flatten(value, type_spec, prefix)
        wanted_by_leaf.update((leaf, values.as_array(leaf, each)) for leaf, each in leaves)
    found = run_round(comp, state, clients)
    assert list(found) == [leaf.name for leaf in wanted_by_leaf]
    for leaf, wanted in wanted_by_leaf.items():
        got = encoding.stored(leaf.name, leaf.type.dtype).decode_array(found[leaf.name])
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if got.dtype == object:
            assert got.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(got, np.asarray(wanted), rtol=1e-6, err_msg=leaf.name)


def test_bare_state_and_metrics(run_round: Callable[..., Any]) -> None:
    @tff.federated_computation(at_server(np.float32), DATA)
    def comp(state: Any, data: Any) -> Any:
        sum_ = tff.federated_sum(tff.federated_map(total, data))
        return tf_map(lambda a, b: a + b, state, sum_), sum_

    check(run_round, comp, 1.5)


def test_no_state_no_metrics(run_round: Callable[..., Any]) -> None:
    @tff.federated_computation(at_server(()), DATA)
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_map(count, data))

    check(run_round, comp, ())

    @tff.federated_computation(at_server(np.int32), DATA)
    def silent(state: Any, data: Any) -> Any:
        sum_ = tff.federated_sum(tff.federated_map(count, data))
        return tf_map(lambda a, b: a + b, state, sum_), tff.federated_value((), tff.SERVER)

    check(run_round, silent, 3)


def test_structures_and_means(run_round: Callable[..., Any]) -> None:
    state_type = collections.OrderedDict(
        model=collections.OrderedDict(w=tff.TensorType(np.float32, [2]), b=np.float64),
        round=np.int32,
    )

    @tff.tensorflow.computation(state_type["model"], np.float32, np.int32)
    def update(model: Any, x: Any, n: Any) -> Any:
        return collections.OrderedDict(
            w=model["w"] * x, b=tf.cast(n, tf.float64) - model["b"], n=tf.cast(n, tf.float32)
        )

    @tff.federated_computation(at_server(state_type), DATA)
    def comp(state: Any, data: Any) -> Any:
        model = tff.federated_broadcast(state["model"])
        n = tff.federated_map(count, data)
        updates = tff.federated_map(update, (model, tff.federated_map(total, data), n))
        weighted = tff.federated_mean((updates["w"], updates["b"]), updates["n"])
        plain = tff.federated_mean(updates)
        next_round = tf_map(lambda r: r + 1, state["round"])
        new = tff.federated_zip(
            collections.OrderedDict(
                model=collections.OrderedDict(w=weighted[0], b=weighted[1]), round=next_round
            )
        )
        return new, collections.OrderedDict(plain=plain, clients=tff.federated_sum(n))

    state = collections.OrderedDict(
        model=collections.OrderedDict(w=np.float32([1, -2]), b=np.float64(0.25)), round=np.int32(7)
    )
    check(run_round, comp, state)


def test_minimum_and_maximum(run_round: Callable[..., Any]) -> None:
    @tff.federated_computation(at_server(np.int32), DATA)
    def comp(state: Any, data: Any) -> Any:
        x, n = tff.federated_map(total, data), tff.federated_map(count, data)
        return state, (tff.federated_min((x, n)), tff.federated_max(n))

    check(run_round, comp, 0)


@pytest.mark.parametrize(
    "dtype",
    [
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.uint16,
        np.uint32,
        np.uint64,
        np.float16,
        np.float32,
        np.float64,
        np.complex64,
        np.complex128,
    ],
)
def test_sum_of_every_dtype(run_round: Callable[..., Any], dtype: Any) -> None:
    """State, broadcast, update and metrics of the dtype."""
    tf_dtype = tf.as_dtype(dtype)

    @tff.tensorflow.computation(tff.TensorType(dtype, [2]), np.float32)
    def work(broadcast: Any, x: Any) -> Any:
        return broadcast * tf.cast(tf.stack([x, 1.0]), tf_dtype)

    @tff.federated_computation(at_server(tff.TensorType(dtype, [2])), DATA)
    def comp(state: Any, data: Any) -> Any:
        x = tff.federated_map(total, data)
        sum_ = tff.federated_sum(tff.federated_map(work, (tff.federated_broadcast(state), x)))
        return tf_map(lambda a, b: a - b, state, sum_), sum_

    check(run_round, comp, np.array([2, 7], dtype))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint8, 86),
        (np.int8, -43),
        (np.int16, 2**14),
        (np.uint32, 2**31),
        (np.uint64, 2**63 + 11),
        (np.uint64, 2**64 - 1),
        (np.float16, 4e4),
    ],
)
def test_a_sum_that_leaves_its_dtype_is_refused(
    run_round: Callable[..., Any], dtype: Any, value: Any
) -> None:
    """Where TFF wraps around, or says infinity."""

    @tff.federated_computation(at_server(tff.TensorType(dtype, [2])), DATA)
    def comp(state: Any, data: Any) -> Any:
        return state, tff.federated_sum(tff.federated_broadcast(state))

    with pytest.raises(StatusError, match=f"1 numbers out of the range of {np.dtype(dtype)};"):
        run_round(comp, np.array([value, 3], dtype), CLIENTS)


# What stays in int64, what crosses 2^63, and the greatest that there is.
@pytest.mark.parametrize("value", [11, 2**62 + 3, (2**64 - 1) // 3])
@pytest.mark.parametrize("add", [tff.federated_sum, tff.federated_max])
def test_uint64_beyond_int64(run_round: Callable[..., Any], add: Any, value: int) -> None:
    shape = tff.TensorType(np.uint64, [2])

    @tff.federated_computation(at_server(shape), DATA)
    def vector(state: Any, data: Any) -> Any:
        return add(tff.federated_broadcast(state)), state

    @tff.federated_computation(at_server(np.uint64), DATA)
    def scalar(state: Any, data: Any) -> Any:
        return add(tff.federated_broadcast(state)), state

    check(run_round, scalar, np.uint64(value))
    check(run_round, vector, np.array([value, 1], np.uint64))


def test_strings_and_booleans(run_round: Callable[..., Any]) -> None:
    state_type = collections.OrderedDict(
        words=tff.TensorType(np.str_, [2]), word=np.str_, flag=np.bool_
    )

    @tff.tensorflow.computation(state_type, tff.SequenceType(np.str_))
    def work(broadcast: Any, examples: Any) -> Any:
        length = tf.reduce_sum(tf.strings.length(broadcast["words"]))
        length += tf.strings.length(broadcast["word"])
        first = examples.take(1).reduce(tf.constant(""), lambda _, x: x)
        return tf.where(broadcast["flag"], length + tf.strings.length(first), 0)

    @tff.federated_computation(at_server(state_type), DATA)
    def comp(state: Any, data: Any) -> Any:
        sizes = tff.federated_map(work, (tff.federated_broadcast(state), data))
        return state, tff.federated_sum(sizes)

    state = collections.OrderedDict(
        words=np.array([b"one", b"three\x00"], object), word=b"\xff\x00", flag=np.bool_(True)
    )
    check(run_round, comp, state)


def test_aggregate(run_round: Callable[..., Any]) -> None:
    """A structured accumulator, a zero from the state, dtypes of no aggregator of ours."""
    zero_type = collections.OrderedDict(best=np.float16, some=np.bool_, words=np.str_)

    @tff.tensorflow.computation(np.float16)
    def make_zero(best: Any) -> Any:
        return collections.OrderedDict(best=best, some=tf.constant(False), words=tf.constant(""))

    @tff.tensorflow.computation(zero_type, (np.float32, np.str_))
    def accumulate(acc: Any, value: Any) -> Any:
        longer = tf.strings.length(value[1]) > tf.strings.length(acc["words"])
        return collections.OrderedDict(
            best=tf.maximum(acc["best"], tf.cast(value[0], tf.float16)),
            some=acc["some"] | (value[0] > 30),
            words=tf.where(longer, value[1], acc["words"]),
        )

    @tff.tensorflow.computation(zero_type, zero_type)
    def merge(a: Any, b: Any) -> Any:
        longer = tf.strings.length(b["words"]) > tf.strings.length(a["words"])
        return collections.OrderedDict(
            best=tf.maximum(a["best"], b["best"]),
            some=a["some"] | b["some"],
            words=tf.where(longer, b["words"], a["words"]),
        )

    @tff.tensorflow.computation(zero_type)
    def report(acc: Any) -> Any:
        return (acc["best"], tf.strings.join([acc["words"], "!"]), tf.cast(acc["some"], tf.uint64))

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def joined(examples: Any) -> Any:
        return examples.reduce(tf.constant(""), lambda a, b: tf.strings.join([a, b]))

    @tff.federated_computation(at_server(np.float16), DATA)
    def comp(state: Any, data: Any) -> Any:
        value = tff.federated_zip((tff.federated_map(total, data), tff.federated_map(joined, data)))
        zero = make_zero(tff.tensorflow.computation(lambda: tf.constant(7, tf.float16))())
        result = tff.federated_aggregate(value, zero, accumulate, merge, report)
        return state, result

    check(run_round, comp, np.float16(2))


def test_secure_sums_in_the_clear(run_round: Callable[..., Any]) -> None:
    @tff.federated_computation(at_server(np.int32), DATA)
    def comp(state: Any, data: Any) -> Any:
        n = tff.federated_map(count, data)
        return state, collections.OrderedDict(
            bits=tff.federated_secure_sum_bitwidth(n, 8),
            bounded=tff.federated_secure_sum(tff.federated_zip((n, n)), (100, 30)),
            one_for_all=tff.federated_secure_sum(tff.federated_zip((n, n)), 50),
        )

    # TFF's own runtime has no secure sums.
    found = run_round(comp, 0, CLIENTS)
    assert {name: int(value) for name, value in found.items()} == {
        "server": 0,
        "metrics/bits": 6,
        "metrics/bounded/0": 6,
        "metrics/bounded/1": 6,
        "metrics/one_for_all/0": 6,
        "metrics/one_for_all/1": 6,
    }


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
