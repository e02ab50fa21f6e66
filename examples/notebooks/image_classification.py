# %% [markdown]
# # Federated image classification
#
# The program of TFF's tutorial of that name: federated averaging of a classifier of handwritten
# digits, each client with digits of its own. There a simulation hands the data over; here the clients
# are devices that keep theirs, and speak the protocol with a server. The digits are those that
# scikit-learn ships.
#
# It needs the extra `tff` ([install](../../docs/first-program.md#1-install)).

# %%
import threading

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from sklearn.datasets import load_digits

import fcp_platform
from fcp_core.client import CallableStore, Client
from fcp_core.protocol.protos.plan_pb2 import ExampleSelector
from fcp_platform.learning import learning_process_computation
from fcp_platform.runtime import LocalRuntime

ROUNDS, CLIENTS = 4, 4
POPULATION, COLLECTION = "notebook/digits", "app:/digits"

# %% [markdown]
# ## Who has what
#
# Each client has digits of some classes only: the data are not alike. An example is a serialized
# `tf.train.Example`, as an application would store it.

# %%
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
held_out = np.arange(len(labels)) % 5 == 0


def example(image, label):
    features = {
        "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def examples_of(client):
    mine = ~held_out & ((labels + client) % CLIENTS < 2)
    return [example(*pair) for pair in zip(images[mine], labels[mine])]


data = [examples_of(client) for client in range(CLIENTS)]
[len(mine) for mine in data]

# %% [markdown]
# ## The model and the process
#
# As in the tutorial: a Keras model, wrapped for TFF, and weighted federated averaging. What differs is
# `parse`: it says what a device makes of its stored examples.


# %%
def keras_model():
    return tf.keras.Sequential(
        [
            tf.keras.layers.InputLayer([64]),
            tf.keras.layers.Dense(10, kernel_initializer="zeros"),
        ]
    )


def model():
    return tff.learning.models.from_keras_model(
        keras_model(),
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        input_spec=(tf.TensorSpec([None, 64], tf.float32), tf.TensorSpec([None, 1], tf.int64)),
    )


def parse(examples):
    features = {
        "pixels": tf.io.FixedLenFeature([64], tf.float32),
        "label": tf.io.FixedLenFeature([1], tf.int64),
    }

    def pair(serialized):
        found = tf.io.parse_single_example(serialized, features)
        return found["pixels"], found["label"]

    return examples.map(pair).repeat(2).batch(20)


process = tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
)


def accuracy(state):
    kernel, bias = state.global_model_weights.trainable
    scores = images[held_out] @ kernel + bias
    return float(np.mean(np.argmax(scores, axis=1) == labels[held_out]))


# %% [markdown]
# ## The devices
#
# In threads of this notebook; `fcp client` hosts them anywhere.


# %%
def live(url, mine, stop):
    with Client(url, POPULATION, stores={COLLECTION: CallableStore(lambda _: mine)}) as device:
        devices.append(device)
        for _ in device.run(num_rounds=-1):
            if stop.is_set():
                return


devices, stop = [], threading.Event()

# %% [markdown]
# ## Rounds
#
# `computation(state, selection)` returns at once, with references to values that the round will give.
# The state goes into the next call; its weights are asked for only to look at them.

# %%
history = []
with LocalRuntime() as runtime:
    server = fcp_platform.LocalServer(config={"retry_min": "50ms", "retry_max": "100ms"})
    context = fcp_platform.FederatedContext(
        POPULATION, server, base_context=runtime.federated_context
    )
    tff.framework.set_default_context(context)
    state = process.initialize()
    computation = fcp_platform.FederatedComputation(
        learning_process_computation(process, parse), name="train"
    )
    source = fcp_platform.FederatedDataSource(
        POPULATION, ExampleSelector(collection_uri=COLLECTION)
    ).iterator()
    with context:
        threads = [
            threading.Thread(target=live, args=(context.server_url, mine, stop)) for mine in data
        ]
        for thread in threads:
            thread.start()
        for _ in fcp_platform.progress(range(ROUNDS)):
            state, metrics = computation(state, source.select(CLIENTS))
            state = await tff.program.materialize_value(state)
            history.append({"accuracy": accuracy(state)})
        stop.set()
        for device in devices:
            device.interrupt()
        for thread in threads:
            thread.join()
summary_of_run = [round(of_round["accuracy"], 3) for of_round in history]
fcp_platform.plot(history)
