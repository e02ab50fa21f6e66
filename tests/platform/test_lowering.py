"""Computations lowered, run as plans in stock TensorFlow and folded, against TFF's own runtime."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.status import StatusError
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
