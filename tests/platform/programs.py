"""Computations, contexts that serve, and devices on threads, for federated programs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform as fcp_demo
from fcp_core.client import CallableStore, Client, Outcome
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos.population_eligibility_spec_pb2 import PopulationEligibilitySpec

POPULATION = "test/population"
COLLECTION = "app:/numbers"
SELECTOR = plan_pb2.ExampleSelector(collection_uri=COLLECTION)
CONFIG = {"retry_min": "50ms", "retry_max": "100ms", "polling_interval": "20ms"}
DATA = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)
MULTIPLE = PopulationEligibilitySpec.TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples: Any) -> Any:
    return examples.reduce(np.int64(0), lambda sum_, x: sum_ + tf.strings.to_number(x, tf.int64))


@tff.tensorflow.computation(np.int64, np.int64)
def add(a: Any, b: Any) -> Any:
    return a + b


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def sum_up(state: Any, data: Any) -> Any:
    sum_ = tff.federated_sum(tff.federated_map(total, data))
    return tff.federated_map(add, (state, sum_)), collections.OrderedDict(sum=sum_)


@tff.federated_computation(tff.FederatedType(np.int64, tff.SERVER), DATA)
def greatest(state: Any, data: Any) -> Any:
    return state, tff.federated_max(tff.federated_map(total, data))


def source(**kwargs: Any) -> Any:
    return fcp_demo.FederatedDataSource(POPULATION, SELECTOR, **kwargs)


class Progress:
    """Waits for events of the server."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[Any] = []

    @hookimpl
    def fcp_event(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, name: str, count: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.count(name) >= count, 60)

    def count(self, name: str) -> int:
        return sum(type(event).__name__ == name for event in self.events)


@contextlib.contextmanager
def serving(**kwargs: Any) -> Iterator[Any]:
    """A context that serves, and is TFF's default; options of its server are among *kwargs*."""
    names = [
        field.name for field in dataclasses.fields(fcp_demo.LocalServer) if field.name in kwargs
    ]
    options = {"config": CONFIG, **{name: kwargs.pop(name) for name in names}}
    server = fcp_demo.LocalServer(**options)
    with fcp_demo.FederatedContext(POPULATION, server, **kwargs) as context:
        previous = tff.framework.get_context_stack().current
        tff.framework.set_default_context(context)
        try:
            yield context
        finally:
            tff.framework.set_default_context(previous)


@contextlib.contextmanager
def devices(
    context: Any,
    data: Sequence[Callable[[str], list[bytes]]],
    *,
    together: bool = False,
    **options: Any,
) -> Iterator[None]:
    """Devices on threads; each holds what its function returns for a collection.

    :param together: nobody contributes twice to a round because another is slow.
    :param options: of the clients.
    """
    done, round_over = threading.Event(), threading.Barrier(len(data))

    def live(client: Client) -> None:
        while not done.is_set():
            result = client.run_once()
            if together and result.outcome is Outcome.CONTRIBUTED:
                with contextlib.suppress(threading.BrokenBarrierError):
                    round_over.wait()
            else:
                done.wait(min(result.retry_after, 0.1))

    with contextlib.ExitStack() as stack:
        for held in data:
            store = CallableStore(lambda selector, held=held: held(selector.collection_uri))
            client = Client(context.server_url, POPULATION, stores=store, **options)
            stack.enter_context(client)
            thread = threading.Thread(target=live, args=(client,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(client.interrupt)
            stack.callback(round_over.abort)
            stack.callback(done.set)
        yield


def holding(*numbers: int) -> list[Callable[[str], list[bytes]]]:
    return [lambda uri, number=number: [str(number).encode()] for number in numbers]


def broadcast(value: Any) -> Any:
    return tff.federated_broadcast(value)
