"""TFF's own aggregators with noise: their arithmetic on devices, and their cost in the ledger."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.plugins import hookimpl
from fcp_core.rounds.events import Released
from fcp_privacy.accounting import gaussian_rho
from fcp_privacy.events import Gaussian, to_cost
from fcp_privacy.plugin import PrivacyPlugin
from tests.platform.programs import CONFIG, POPULATION, devices, holding, serving, source

pytestmark = [pytest.mark.tff, pytest.mark.slow]

NUMBERS = (1, 4, 6)
COSTS = [to_cost(Gaussian(2.0))]


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


def run(comp: Any, state: Any, *, rounds: int = 1, **given: Any) -> tuple[Any, dict[str, float]]:
    """Run rounds of three devices; return state and result of the last, and what was booked.

    :param given: options of the context, and ``trusted``, ``rho``, ``ledger`` of the server.
    """
    bookings = Bookings()
    books = {
        "privacy.trust_programs": given.pop("trusted", False),
        "privacy.rho": given.pop("rho", 1.0),
    }
    plugins = [PrivacyPlugin(), bookings]
    if not given.pop("ledger", True):
        books, plugins = {}, [bookings]

    async def program() -> Any:
        computation = fcp_platform.FederatedComputation(comp, name="private")
        last = (state, None)
        for _ in range(rounds):
            last = computation(last[0], source().iterator().select(3))
        return await tff.program.materialize_value(tuple(last))

    options = {"plan_cache": None, "over_selection": 1.0, **given}
    with (
        serving(config={**CONFIG, **books}, plugins=plugins, **options) as context,
        devices(context, holding(*NUMBERS), together=True),
    ):
        return asyncio.run(program()), bookings.figures


FACTORY = tff.aggregators.DifferentiallyPrivateFactory


def simulated(comp: Any, initialize: Any, rounds: int = 1) -> tuple[Any, Any, Any]:
    """Return the first state, and the last state and result in TFF's own runtime."""
    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    first = runtime.invoke(initialize, None)
    last = (first, None)
    for _ in range(rounds):
        last = runtime.invoke(comp, (last[0], [[str(number)] for number in NUMBERS]))
    return first, *last


def leaves(state: Any) -> dict[str, Any]:
    """Return what a state is made of."""
    return {"/".join(map(str, path)): leaf for path, leaf in tree_flatten(state)}


def tree_flatten(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        for name, element in value.items():
            yield from tree_flatten(element, (*path, name))
    elif isinstance(value, list | tuple):
        for index, element in enumerate(value):
            yield from tree_flatten(element, (*path, index))
    else:
        yield path, value


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
    state, _, wanted = simulated(comp, initialize)
    (_, found), figures = run(comp, state, trusted=True, costs=COSTS)
    assert np.allclose(found, wanted, atol=1e-4)
    assert figures["privacy_spent"] == pytest.approx(gaussian_rho(2.0))


def test_what_tffs_noise_costs_is_booked_without_a_word_of_the_program() -> None:
    comp, initialize = aggregated(FACTORY.gaussian_adaptive(2.0, 3, clipped_count_stddev=1.5))
    state, _, _ = simulated(comp, initialize)
    _, figures = run(comp, state, trusted=True)
    assert figures["privacy_spent"] == pytest.approx(gaussian_rho(2.0))


def test_a_server_without_a_ledger_runs_programs_with_noise_and_cannot_draw_it() -> None:
    comp, initialize = aggregated(FACTORY.gaussian_fixed(1e-6, 3, 0.5))
    state, _, wanted = simulated(comp, initialize)
    (_, found), figures = run(comp, state, ledger=False)
    assert np.allclose(found, wanted, atol=1e-4)
    assert figures == {}
    with pytest.raises(Exception, match="dp_gaussian"):
        run(comp, state, ledger=False, dp="server")


@pytest.mark.parametrize(
    ("make", "cost"),
    [
        (lambda: FACTORY.gaussian_fixed(0.01, 3, 0.5), 2),
        (lambda: FACTORY.gaussian_adaptive(0.01, 3, clipped_count_stddev=0.008), 2),
        # The nodes of a tree over two rounds: a device is in one, in the other, and twice in both.
        (lambda: FACTORY.tree_aggregation(0.01, 3, 0.5, tff.TensorType(np.float32, [3])), 6),
    ],
    ids=["fixed", "adaptive", "tree"],
)
def test_the_server_draws_the_noise_where_the_program_asks_for_it(make: Any, cost: int) -> None:
    """It takes nobody's word for it then; clip, divisor and the steps of the clip stay TFF's."""
    comp, initialize = aggregated(make())
    first, wanted_state, wanted = simulated(comp, initialize, rounds=2)
    (state, found), figures = run(comp, first, rounds=2, dp="server", rho=1e6)
    # Noise of 0.01 clips in a sum of three, and in that of tree's rounds some more.
    assert np.allclose(found, wanted, atol=0.02)
    assert figures["privacy_spent"] == pytest.approx(cost * gaussian_rho(0.01), rel=1e-6)
    # A program that goes on elsewhere goes on with its noise.
    was, now, then = leaves(first), leaves(state), leaves(wanted_state)
    for name, value in was.items():
        if "tree_state" in name or "previous_tree_noise" in name:
            assert np.array_equal(now[name], value), name
        elif isinstance(value, np.ndarray | np.generic | float):
            assert np.allclose(now[name], then[name], rtol=0.02), name


def test_the_servers_noise_is_as_large_as_the_factory_says() -> None:
    """64 sums of nothing: their noise divided by the divisor, and that of the count."""
    process = FACTORY.gaussian_adaptive(4.0, 2, 3.0, clipped_count_stddev=50.0).create(
        tff.TensorType(np.float32, [400])
    )
    data = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def nothing(examples: Any) -> Any:
        return tf.zeros([400]) * examples.reduce(0.0, lambda sum_, _: sum_)

    @tff.federated_computation(process.initialize.type_signature.result, data)
    def comp(state: Any, values: Any) -> Any:
        output = process.next(state, tff.federated_map(nothing, values))
        return output.state, output.result

    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    first = runtime.invoke(process.initialize, None)
    (_, found), figures = run(comp, first, dp="server", rho=1e3)
    values = (4.0**-2 - (2 * 50.0) ** -2) ** -0.5
    # The standard deviation of 400 draws is within 25 % (seven of its own) of the true one.
    assert np.std(found) == pytest.approx(3.0 * values / 2, rel=0.25)
    assert figures["privacy_spent"] == pytest.approx(gaussian_rho(4.0))


@pytest.mark.parametrize("zeroing", [False, True])
def test_learning_with_tffs_dp_aggregator(zeroing: bool) -> None:
    """On the server without zeroing, whose count has no noise; by TFF's own noise in any case."""
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        one_weight,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
        model_aggregator=tff.learning.dp_aggregator(0.2, 3, zeroing=zeroing),
    )
    data = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def parse(examples: Any) -> Any:
        return examples.map(lambda x: 2 * [[tf.strings.to_number(x)]]).batch(1)

    @tff.federated_computation(process.initialize.type_signature.result, data)
    def comp(state: Any, values: Any) -> Any:
        output = process.next(state, tff.federated_map(parse, values))
        return output.state, output.metrics["aggregator"]

    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    first = runtime.invoke(process.initialize, None)
    if zeroing:
        # The zeroing counts beside the noise, and nothing is booked that nobody has said.
        with pytest.raises(Exception, match="results of federated_sum have no noise"):
            run(comp, first, trusted=True)
        with pytest.raises(ValueError, match="zeroing=False"):
            run(comp, first, dp="server")
        return
    for who in ("program", "server"):
        (state, _), figures = run(comp, first, trusted=who == "program", dp=who, rho=1e3)
        assert figures["privacy_spent"] == pytest.approx(gaussian_rho(0.2), rel=1e-6)
        assert np.isfinite(state.global_model_weights.trainable[0]).all()


def one_weight() -> Any:
    """Return a model of one weight."""
    layers = [tf.keras.layers.InputLayer((1,)), tf.keras.layers.Dense(1, use_bias=False)]
    return tff.learning.models.from_keras_model(
        tf.keras.Sequential(layers),
        loss=tf.keras.losses.MeanSquaredError(),
        input_spec=(tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])),
    )


def test_what_the_server_cannot_draw_is_refused_in_words() -> None:
    data = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.federated_computation(data)
    def plain(values: Any) -> Any:
        return tff.federated_sum(tff.federated_map(update, values))

    process = FACTORY.gaussian_fixed(1.0, 3, 0.5).create(tff.TensorType(np.float32, [3]))

    @tff.federated_computation(process.initialize.type_signature.result, data)
    def beside(state: Any, values: Any) -> Any:
        updates = tff.federated_map(update, values)
        output = process.next(state, updates)
        return output.state, (output.result, tff.federated_sum(updates))

    context = fcp_platform.FederatedContext(POPULATION, plan_cache=None, dp="server")
    numbers = source().iterator().select(3)
    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    state = runtime.invoke(process.initialize, None)

    async def start(comp: Any, argument: Any) -> None:
        context.invoke(fcp_platform.FederatedComputation(comp, name="no"), argument)

    with pytest.raises(ValueError, match="this one has none"):
        asyncio.run(start(plain, numbers))
    with pytest.raises(ValueError, match="beside what is clipped the computation aggregates"):
        asyncio.run(start(beside, [state, numbers]))
    with pytest.raises(ValueError, match="leave costs out"):
        fcp_platform.FederatedContext(POPULATION, dp="server", costs=COSTS)
    with pytest.raises(ValueError, match="dp must be 'program' or 'server'"):
        fcp_platform.FederatedContext(POPULATION, dp="device")
    context.__exit__(None, None, None)  # it listens since it was made


def test_a_population_that_demands_noise_takes_no_programs_word_for_it() -> None:
    comp, initialize = aggregated(FACTORY.gaussian_fixed(1.0, 3, 0.5))
    state, _, _ = simulated(comp, initialize)
    with pytest.raises(Exception, match="takes nobody's word for it"):
        run(comp, state, costs=COSTS)


def test_a_hierarchical_histogram_with_central_noise_is_booked_by_its_cost() -> None:
    process = tff.analytics.build_hierarchical_histogram_process(
        0.0,
        8.0,
        4,
        max_records_per_user=1,
        dp_mechanism="central-gaussian",
        noise_multiplier=1e-3,
        enable_secure_sum=False,
    )

    @tff.tensorflow.computation(tff.SequenceType(np.str_))
    def numbers(examples: Any) -> Any:
        return examples.map(lambda text: tf.strings.to_number(text, tf.float32))

    data = tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS)

    @tff.federated_computation(process.initialize.type_signature.result, data)
    def comp(state: Any, values: Any) -> Any:
        output = process.next(state, tff.federated_map(numbers, values))
        return output[0], output[0].aggregated_hierarchical_histogram.flat_values

    runtime = tff.backends.native.create_sync_local_cpp_execution_context()
    first = runtime.invoke(process.initialize, None)
    (_, found), figures = run(comp, first, trusted=True, costs=COSTS)
    # All, by halves, by quarters.
    assert np.allclose(found, [3, 1, 2, 1, 0, 1, 1], atol=0.1)
    assert figures["privacy_spent"] == pytest.approx(gaussian_rho(2.0))
    with pytest.raises(Exception, match="results of federated_sum have no noise"):
        run(comp, first)
