"""Sessions of TensorFlow plans: used again, interrupted, and so many at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcp_core.client import CallableStore, CollectionStore
from fcp_core.client.interruption import Interruption
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_core.protocol.status import Code, StatusError
from tests.client.graphs import (
    START,
    changed,
    constant,
    data,
    external,
    make_plan,
    run,
    save,
    selector,
    store_of,
    tf,
    v1,
)

pytestmark = [pytest.mark.tff, pytest.mark.slow]


@pytest.fixture
def sessions_made(monkeypatch):
    """Counts the sessions that are made."""
    made = []
    make = v1.Session
    monkeypatch.setattr(v1, "Session", lambda **given: made.append(given) or make(**given))
    return made


def plan_of(value):
    """Return a plan that saves the number that *value* computes from the data's size."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.string, (), "data_token")
        save(x=value(data("data_0").reduce(np.int64(0), lambda n, _: n + 1)))
    graph_def = graph.as_graph_def()
    constant(graph_def, "selector", selector("app:/x"))
    external(graph_def, "data_0", "selector")
    return make_plan(graph_def)


def test_a_session_with_variables_alone_is_used_again(counting_plan, sessions_made):
    executor = TensorFlowExecutor()
    for number in range(3):
        store = store_of(*[b"x"] * number)
        total = run(executor, counting_plan, store, checkpoint=START)["total"]
        assert total == 100 + 2 * number
    assert len(sessions_made) == 1
    # Not after a failure.
    with pytest.raises(StatusError):
        run(executor, counting_plan, CollectionStore({}), checkpoint=START)
    assert run(executor, counting_plan, store_of(b"x"), checkpoint=START)["total"] == 102
    assert len(sessions_made) == 2
    # Nor with another configuration.
    config = v1.ConfigProto(allow_soft_placement=True).SerializeToString()
    plan = changed(
        counting_plan, lambda p, s, r: setattr(p.tensorflow_config_proto, "value", config)
    )
    assert run(executor, plan, store_of(b"x"), checkpoint=START)["total"] == 102
    assert len(sessions_made) == 3


def count_in_a_table(n):
    """Insert into a table with a name, which outlives a run; return its size before."""
    table = tf.raw_ops.MutableHashTableV2(
        key_dtype=tf.int64, value_dtype=tf.int64, shared_name="table"
    )
    size = tf.raw_ops.LookupTableSizeV2(table_handle=table)
    with tf.control_dependencies([size]):
        insert = tf.raw_ops.LookupTableInsertV2(table_handle=table, keys=n, values=n)
    with tf.control_dependencies([insert]):
        return tf.identity(size)


@pytest.mark.parametrize(
    "value",
    [
        count_in_a_table,
        lambda n: v1.random_uniform((), seed=7) + tf.cast(n, tf.float32) * 0,
    ],
)
def test_state_that_cannot_be_reset_takes_a_new_session(value, sessions_made):
    executor, plan = TensorFlowExecutor(), plan_of(value)
    results = {run(executor, plan, store_of())["x"].tolist() for _ in range(3)}
    assert len(results) == 1  # as if each run were the first one
    assert len(sessions_made) == 3


def test_unseeded_randomness_goes_on(sessions_made):
    executor = TensorFlowExecutor()
    plan = plan_of(lambda n: v1.random_uniform(()) + tf.cast(n, tf.float32) * 0)
    assert len({run(executor, plan, store_of())["x"].tolist() for _ in range(3)}) == 3
    assert len(sessions_made) == 1


def test_interruption_ends_a_running_plan(executor, counting_plan):
    reading = threading.Event()
    interruption = Interruption()

    def endless(selector):
        while True:
            reading.set()
            yield b"x" * 1000

    def stop():
        reading.wait(60)
        interruption.request()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(StatusError) as caught:
        run(
            executor,
            counting_plan,
            CallableStore(endless),
            checkpoint=START,
            interruption=interruption,
        )
    stopper.join()
    assert caught.value.code is Code.CANCELLED


def test_only_so_many_plans_run_at_once(counting_plan, sessions_made):
    executor = TensorFlowExecutor(at_once=1)
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(run, executor, counting_plan, store_of(b"x" * n), checkpoint=START)
            for n in range(8)
        ]
        assert [future.result()["total"] for future in runs] == [100 + 2 * n for n in range(8)]
    assert len(sessions_made) == 1


def test_interruption_of_a_plan_that_waits_for_its_turn(counting_plan):
    executor = TensorFlowExecutor(at_once=1)
    reading = threading.Event()
    first, second = Interruption(), Interruption()

    def endless(selector):
        while True:
            reading.set()
            yield b"x" * 1000

    def work(store, interruption):
        run(executor, counting_plan, store, checkpoint=START, interruption=interruption)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(work, CallableStore(endless), first)
        assert reading.wait(60)
        waiting = pool.submit(work, store_of(b"x"), second)
        second.request()
        assert waiting.exception(60).code is Code.CANCELLED
        first.request()
        assert holding.exception(60).code is Code.CANCELLED
    assert run(executor, counting_plan, store_of(b"x"), checkpoint=START)["total"] == 102
