"""How long a round of federated averaging takes, compared with TFF's own simulation of it.

A network of 1,002,570 parameters, ten devices with fifty digits each. The simulation runs the whole
round in TFF's runtime; ours runs the same computation on ten devices in two processes of their own,
over HTTP, with all defaults. Both run some rounds, and the shortest of each counts: other processes
can only add to it.

    python benchmarks/bench_fedavg.py [--quick]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from goals import Goal, main

#: How long devices may take for a round, in seconds, before they are given up.
DEADLINE = 300
DEVICES = 10
EXAMPLES = 50
HIDDEN = 964
PARAMETERS = 1_002_570
ROUNDS = 6
QUICK_ROUNDS = 3
#: How much longer than the simulation a round may take.
LIMIT = 1.3


def learning_process() -> Any:
    """Return weighted federated averaging of the network."""
    import tensorflow as tf
    import tensorflow_federated as tff

    from fcp_platform.demo import data

    def model() -> Any:
        network = tf.keras.Sequential(
            [
                tf.keras.layers.InputLayer([data.PIXELS]),
                tf.keras.layers.Dense(HIDDEN, activation="relu"),
                tf.keras.layers.Dense(HIDDEN, activation="relu"),
                tf.keras.layers.Dense(data.CLASSES),
            ]
        )
        assert network.count_params() == PARAMETERS
        return tff.learning.models.from_keras_model(
            network,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=(
                tf.TensorSpec([None, data.PIXELS], tf.float32),
                tf.TensorSpec([None, 1], tf.int64),
            ),
        )

    return tff.learning.algorithms.build_weighted_fed_avg(
        model,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.05),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )


def batches(examples: Any) -> Any:
    """Turn a device's serialized examples into batches."""
    import tensorflow as tf

    from fcp_platform.demo import data

    def parse(serialized: Any) -> Any:
        features = {
            "pixels": tf.io.FixedLenFeature([data.PIXELS], tf.float32),
            "label": tf.io.FixedLenFeature([1], tf.int64),
        }
        example = tf.io.parse_single_example(serialized, features)
        return example["pixels"], example["label"]

    return examples.map(parse).batch(10)


def measure(rounds: int) -> tuple[float, float]:
    """Return the seconds of the shortest round: on devices, and in the simulation."""
    import tensorflow as tf
    import tensorflow_federated as tff

    from fcp_core.protocol.protos import plan_pb2
    from fcp_platform import (
        FederatedComputation,
        FederatedContext,
        FederatedDataSource,
        LocalServer,
    )
    from fcp_platform.demo import data
    from fcp_platform.demo.devices import EXAMPLES as FILE
    from fcp_platform.demo.hosts import hosted
    from fcp_platform.demo.settings import POPULATION
    from fcp_platform.learning import learning_process_computation
    from fcp_platform.runtime import LocalRuntime

    with tempfile.TemporaryDirectory() as folder, LocalRuntime() as runtime:
        train, _ = data.load(0, 300)
        folders = [Path(folder) / f"device{number}" for number in range(DEVICES)]
        for number, place in enumerate(folders):
            place.mkdir()
            some = train.take(np.arange(EXAMPLES) + number * EXAMPLES)
            data.write_examples(place / FILE, some)
        clients = [
            [bytes(item) for item in tf.data.TFRecordDataset(str(place / FILE)).as_numpy_iterator()]
            for place in folders
        ]
        process = learning_process()
        computation = learning_process_computation(process, batches)
        first = process.initialize()
        simulated, state = [], first
        for _ in range(rounds):
            began = time.perf_counter()
            state, _ = computation(state, clients)
            simulated.append(time.perf_counter() - began)
            print(f"simulation: {simulated[-1]:.2f} s", file=sys.stderr)
        config = {"retry_min": 0, "retry_max": 0, "check_in_hold": 30}
        context = FederatedContext(
            POPULATION,
            LocalServer(config=config),
            base_context=runtime.federated_context,
            deadline=DEADLINE,
        )
        tff.framework.set_default_context(context)
        program = FederatedComputation(computation, name="bench/fedavg")
        context.lower(program)

        async def run() -> list[float]:
            selector = plan_pb2.ExampleSelector(collection_uri=data.COLLECTION_URI)
            source = FederatedDataSource(POPULATION, selector).iterator()
            found, state = [], first
            for _ in range(rounds):
                began = time.perf_counter()
                state, metrics = program(state, source.select(DEVICES))
                state, _ = await tff.program.materialize_value((state, metrics))
                found.append(time.perf_counter() - began)
                print(f"devices: {found[-1]:.2f} s", file=sys.stderr)
            return found

        with context, hosted(folders, 2, {}) as hosts:
            hosts.start(context.server_url)
            real = asyncio.run(run())
    return min(real), min(simulated)


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    real, simulated = measure(QUICK_ROUNDS if quick else ROUNDS)
    what = f"a round of {PARAMETERS:,} parameters and {DEVICES} devices ({real:.2f} s)"
    return [Goal("FedAvg", f"{what} to TFF's simulation", real / simulated, LIMIT)]


if __name__ == "__main__":
    main(goals, __doc__)
