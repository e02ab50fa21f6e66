"""TFF's own aggregators with noise: their arithmetic on devices, and their cost in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.client import CallableStore, Client
from fcp_core.plugins import hookimpl
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.events import Released
from fcp_privacy.accounting import gaussian_rho
from fcp_privacy.events import Gaussian, to_cost
from fcp_privacy.plugin import PrivacyPlugin

pytestmark = [pytest.mark.tff, pytest.mark.slow]

POPULATION = "test/population"
SELECTOR = plan_pb2.ExampleSelector(collection_uri="app:/numbers")
NUMBERS = (1, 4, 6)
COSTS = [to_cost(Gaussian(2.0))]
BOOKS = {"privacy.rho": 1.0, "retry_min": "50ms", "retry_max": "100ms"}


@tff.tensorflow.computation(tff.SequenceType(np.str_))
def update(examples: Any) -> Any:
    number = examples.reduce(0.0, lambda sum_, x: sum_ + tf.strings.to_number(x))
    return tf.stack([number / 10, -number / 10, 0.25])


def aggregated(factory: Any) -> Any:
    """Return a computation that aggregates an update of each device, and its first state."""
    process = factory.create(tff.TensorType(np.float32, [3]))
    data_type = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.federated_computation(process.initialize.type_signature.result, data_type)
    def comp(state: Any, data: Any) -> Any:
        output = process.next(state, tff.federated_map(update, data))
        return output.state, output.result

    return comp, process.initialize


class Bookings:
    """Remembers what was booked."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @hookimpl
    def fcp_event(self, event: Any) -> None:
        if isinstance(event, Released):
            self.figures = dict(event.figures)


def run(comp: Any, state: Any, trusted: bool) -> tuple[Any, dict[str, float]]:
    """Run one round of three devices; return its result, and what was booked."""
    bookings = Bookings()
    server = fcp_platform.LocalServer(
        config={**BOOKS, "privacy.trust_programs": trusted}, plugins=[PrivacyPlugin(), bookings]
    )
    context = fcp_platform.FederatedContext(
        POPULATION, server, plan_cache=None, over_selection=1.0, costs=COSTS
    )
    done = threading.Event()

    def live(client: Client) -> None:
        while not done.is_set():
            done.wait(min(client.run_once().retry_after, 0.1))

    async def program() -> Any:
        source = fcp_platform.FederatedDataSource(POPULATION, SELECTOR)
        computation = fcp_platform.FederatedComputation(comp, name="private")
        _, result = computation(state, source.iterator().select(3))
        return await tff.program.materialize_value(result)

    with contextlib.ExitStack() as stack:
        stack.enter_context(context)
        previous = tff.framework.get_context_stack().current
        tff.framework.set_default_context(context)
        stack.callback(tff.framework.set_default_context, previous)
        threads = []
        for number in NUMBERS:
            store = CallableStore(lambda _, number=number: [str(number).encode()])
            client = stack.enter_context(Client(context.server_url, POPULATION, stores=store))
            stack.callback(client.interrupt)
            threads.append(threading.Thread(target=live, args=(client,)))
        stack.callback(done.set)
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
            stack.callback(done.set)
        return asyncio.run(program()), bookings.figures


FACTORY = tff.aggregators.DifferentiallyPrivateFactory


@pytest.mark.parametrize(
    "make",
    [
        lambda: FACTORY.gaussian_fixed(1e-6, 3, 0.5),
        lambda: FACTORY.gaussian_adaptive(1e-6, 3, clipped_count_stddev=1e-6),
        lambda: FACTORY.tree_aggregation(1e-6, 3, 0.5, tff.TensorType(np.float32, [3])),
    ],
    ids=["fixed", "adaptive", "tree"],
)
def test_devices_give_what_tffs_own_runtime_gives_and_the_ledger_has_the_cost(make: Any) -> None:
    """The noise is next to none here: the clips and the divisors are what is compared."""
    comp, initialize = aggregated(make())
    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    state = runtime.invoke(initialize, None)
    _, wanted = runtime.invoke(comp, (state, [[str(number)] for number in NUMBERS]))
    found, figures = run(comp, state, trusted=True)
    assert np.allclose(found, wanted, atol=1e-4)
    assert figures["privacy_spent"] == pytest.approx(gaussian_rho(2.0))


def test_a_population_that_demands_noise_takes_no_programs_word_for_it() -> None:
    comp, initialize = aggregated(FACTORY.gaussian_fixed(1.0, 3, 0.5))
    state = tff.backends.native.create_sync_local_cpp_execution_context().invoke(initialize, None)
    with pytest.raises(Exception, match="takes nobody's word for it"):
        run(comp, state, trusted=False)
