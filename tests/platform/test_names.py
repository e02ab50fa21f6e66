"""The codec between TFF types and tensor names, and what depends on it, for types of all kinds."""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_platform import FederatedComputation, context, naming
from fcp_platform.runtime import LocalRuntime

pytestmark = pytest.mark.tff

DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
CLIENTS = [[b"x"], [b"x", b"y"]]

NAMES = st.one_of(
    st.sampled_from(["a", "b", "a/b", "0", "1", "10", "%", "%2F", "a b", " ", "a:0", "é", "^x"]),
    st.text("ab01/% _-.", min_size=1, max_size=4),
)
DTYPES = st.sampled_from([np.int32, np.float32, np.int64, np.float64, np.uint8, np.str_])
TENSORS = st.builds(tff.TensorType, DTYPES, st.lists(st.integers(1, 3), max_size=2).map(tuple))


def structs(inner: Any, least: int = 0) -> Any:
    named = st.lists(
        st.tuples(NAMES, inner), min_size=least, max_size=4, unique_by=lambda pair: pair[0]
    )
    return st.one_of(named, st.lists(inner, min_size=least, max_size=4)).map(tff.StructType)


TYPES = st.recursive(TENSORS, structs, max_leaves=8)

#: Each pair of these was one name once.
ALIKE = tff.StructType(
    [
        ("loss", tff.StructType([("train", np.int32)])),
        ("loss/train", np.int32),
        ("loss train", np.int32),
    ]
)


def paths(type_spec: Any) -> list[tuple[str | int, ...]]:
    if not isinstance(type_spec, tff.StructType):
        return [()]
    return [
        (index if name is None else name, *path)
        for index, (name, element) in enumerate(naming.member_types(type_spec))
        for path in paths(element)
    ]


@given(TYPES)
@example(ALIKE)
@example(tff.StructType([("1", np.int32), (None, np.int32)]))
@example(tff.StructType([("a%2Fb", np.int32), ("a/b", np.int32)]))
@settings(deadline=None)
def test_names_and_ways_are_one_to_one(type_spec: Any) -> None:
    found = naming.leaves(type_spec, "server")
    assert len({leaf.name for leaf in found}) == len(found)
    assert [naming.path_of(leaf.name, "server") for leaf in found] == paths(type_spec)


def test_ordinary_names_are_those_of_the_reference() -> None:
    type_spec = tff.StructType([("a", tff.StructType([("b", np.int32), (None, np.int32)]))])
    found = naming.leaves(type_spec, "update")
    assert [leaf.name for leaf in found] == ["update/a/b", "update/a/1"]


@pytest.fixture(scope="module")
def runtime() -> Iterator[LocalRuntime]:
    with LocalRuntime() as running:
        yield running


def value_of(type_spec: Any, numbers: Iterator[int]) -> Any:
    """A value of a type, whose leaves are all different."""
    if isinstance(type_spec, tff.StructType):
        members = naming.member_types(type_spec)
        given = [(name, value_of(element, numbers)) for name, element in members]
        return collections.OrderedDict(given) if given[0][0] else tuple(each for _, each in given)
    dtype = object if type_spec.dtype.type is np.str_ else type_spec.dtype
    number = next(numbers)
    filled = np.full(type_spec.shape, str(number).encode() if dtype is object else number, dtype)
    return filled[()]


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def count(examples: Any) -> Any:
    return examples.reduce(np.int32(0), lambda n, _: n + 1)


def computation_on(type_spec: Any) -> Any:
    """A computation that broadcasts, aggregates and returns each leaf of its state by itself."""

    def each(value: Any, function: Callable[[Any], Any], part: Any = type_spec) -> Any:
        if not isinstance(part, tff.StructType):
            return function(value)
        members = naming.member_types(part)
        given = [
            (name, each(value[index], function, element))
            for index, (name, element) in enumerate(members)
        ]
        return collections.OrderedDict(given) if given[0][0] else tuple(one for _, one in given)

    @tff.federated_computation(tff.FederatedType(type_spec, tff.SERVER), DATA)
    def comp(state: Any, data: Any) -> Any:
        counts = tff.federated_map(count, data)

        def doubled(leaf: Any) -> Any:
            def twice(one: Any) -> Any:
                return tf.strings.join([one, one]) if one.dtype == tf.string else one + one

            function = tff.tensorflow.computation(twice, leaf.type_signature.member)
            return tff.federated_map(function, leaf)

        def summed(leaf: Any) -> Any:
            def times(one: Any, n: Any) -> Any:
                number = tf.strings.to_number(one) if one.dtype == tf.string else one
                return tf.cast(number, tf.float32) * tf.cast(n, tf.float32)

            function = tff.tensorflow.computation(times, leaf.type_signature.member, np.int32)
            return tff.federated_sum(tff.federated_map(function, (leaf, counts)))

        sums = each(tff.federated_broadcast(state), summed)
        new = each(state, doubled)
        return tff.federated_zip(new) if isinstance(type_spec, tff.StructType) else new, sums

    return comp


def same(found: Any, expected: Any) -> bool:
    """Whether two results are alike, containers too."""
    if isinstance(expected, dict):
        return (
            type(found) is type(expected)
            and list(found) == list(expected)
            and all(same(found[key], expected[key]) for key in expected)
        )
    if isinstance(expected, tuple):
        alike = type(found) is type(expected) and len(found) == len(expected)
        return alike and all(map(same, found, expected))
    return bool(np.array_equal(found, expected)) and np.shape(found) == np.shape(expected)


@pytest.mark.slow
@given(st.recursive(TENSORS, functools.partial(structs, least=1), max_leaves=5))
@example(ALIKE)
@example(tff.StructType([tff.StructType([("0", np.int32), ("1/0", np.str_)]), np.int64]))
@settings(
    deadline=None,
    max_examples=5,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_tff_returns_the_platform_returns(
    run_round: Callable[..., Any], runtime: LocalRuntime, type_spec: Any
) -> None:
    comp = computation_on(type_spec)
    state = value_of(type_spec, itertools.count(3))
    expected = comp(state, CLIENTS)
    checkpoint = write_checkpoint(run_round(comp, state, CLIENTS), "tf_v1")

    async def materialised() -> Any:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        future.set_result(checkpoint)
        return await tff.program.materialize_value(
            context._result(FederatedComputation(comp, name="a"), future)
        )

    assert same(asyncio.run(materialised()), expected)
