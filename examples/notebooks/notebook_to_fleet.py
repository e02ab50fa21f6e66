# %% [markdown]
# # From notebook to fleet
#
# One federated program, three times: simulated by TensorFlow Federated (TFF), on devices of this
# machine with a server in this notebook, and on a server that stands alone. The program does not
# change; what it runs on does.
#
# It needs the extra `tff` ([install](../../docs/first-program.md#1-install)).

# %%
import collections
import threading

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.client import CallableStore, Client
from fcp_core.protocol.protos.plan_pb2 import ExampleSelector

# %% [markdown]
# ## The question
#
# Each device has measured temperatures, as text. What is their mean, each device counting by the number
# of its measurements, and what is the largest? The mean is what a round adds to the state.


# %%
@tff.tensorflow.computation(tff.SequenceType(np.str_))
def summary(measured):
    degrees = measured.map(lambda text: tf.strings.to_number(text, tf.float32))
    total = degrees.reduce(np.float32(0), lambda a, b: a + b)
    count = degrees.reduce(np.float32(0), lambda a, _: a + 1)
    largest = degrees.reduce(np.float32(-1000), tf.maximum)
    return collections.OrderedDict(mean=total / count, count=count, largest=largest)


@tff.tensorflow.computation(np.float32, np.float32)
def add(a, b):
    return a + b


@tff.federated_computation(
    tff.FederatedType(np.float32, tff.SERVER),
    tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS),
)
def measure(state, data):
    found = tff.federated_map(summary, data)
    mean = tff.federated_mean(found.mean, weight=found.count)
    metrics = collections.OrderedDict(mean=mean, largest=tff.federated_max(found.largest))
    return tff.federated_map(add, (state, mean)), metrics


# %% [markdown]
# ## 1. Simulated
#
# In TFF's own runtime the clients' data is an argument. `LocalRuntime` is that runtime in a process
# that ends with the notebook.

# %%
from fcp_platform.runtime import LocalRuntime

MEASURED = [["18.5", "19.5"], ["22.0"], ["21.0", "20.0", "22.0"]]

with LocalRuntime():
    _, simulated = measure(np.float32(0), MEASURED)
{name: float(value) for name, value in simulated.items()}

# %% [markdown]
# ## 2. Devices of this machine
#
# The same computation with a name, which becomes the name of the task. A data source says whose data is
# meant: the population, and which of their examples. `select(3)` waits for three contributions.

# %%
COLLECTION = "app:/temperatures"
POPULATION = "notebook/rooms"


async def program(context):
    tff.framework.set_default_context(context)
    computation = fcp_platform.FederatedComputation(measure, name="measure")
    rooms = fcp_platform.FederatedDataSource(
        POPULATION, ExampleSelector(collection_uri=COLLECTION)
    ).iterator()
    _, metrics = computation(np.float32(0), rooms.select(3))
    return {name: float(await value.get_value()) for name, value in metrics.items()}


# %% [markdown]
# A device is a `Client` with stores for its data. Here three of them live in threads; each contributes
# once. They could as well be processes elsewhere, or phones.


# %%
def live(url, measured):
    examples = [text.encode() for text in measured]
    with Client(url, POPULATION, stores={COLLECTION: CallableStore(lambda _: examples)}) as device:
        for result in device.run(num_rounds=-1):
            if result.outcome.name == "CONTRIBUTED":
                return


def devices(url):
    threads = [threading.Thread(target=live, args=(url, measured)) for measured in MEASURED]
    for thread in threads:
        thread.start()
    return threads


# %%
in_a_hurry = {"retry_min": "100ms", "retry_max": "200ms"}
server = fcp_platform.LocalServer(config=in_a_hurry)
with fcp_platform.FederatedContext(POPULATION, server) as context:
    threads = devices(context.server_url)
    on_devices = await program(context)
    for thread in threads:
        thread.join()
on_devices

# %% [markdown]
# ## 3. A server that stands alone
#
# `fcp serve` goes on when the notebook ends, and keeps its tasks over a crash. It is started from here
# so that the notebook is complete; yours is a [deployment](../../docs/deployment.md).

# %%
import re
import secrets
import subprocess
import sys
import tempfile

token = secrets.token_hex(32)
folder = tempfile.TemporaryDirectory()
alone = subprocess.Popen(
    [sys.executable, "-m", "fcp_core", "-s", "retry_min=100ms", "-s", "retry_max=200ms"]
    + ["-s", f"admin.token={token}", "serve", "--port", "0", "--population", POPULATION],
    cwd=folder.name,
    stderr=subprocess.PIPE,
    text=True,
)
for line in alone.stderr:
    if found := re.search(r"for devices at (\S+),", line):
        break
threading.Thread(target=alone.stderr.read, daemon=True).start()
url = found[1]

# %% [markdown]
# One line differs:

# %%
with fcp_platform.FederatedContext(
    POPULATION, fcp_platform.RemoteServer(url, token=token)
) as context:
    threads = devices(url)
    elsewhere = await program(context)
    for thread in threads:
        thread.join()
elsewhere

# %%
alone.terminate()
alone.wait()
folder.cleanup()
summary_of_run = [{k: float(v) for k, v in simulated.items()}, on_devices, elsewhere]
summary_of_run

# %% [markdown]
# ## Next
#
# A model instead of a mean: [image classification](image_classification.py). What a program may have:
# [the TFF platform](../../docs/platform.md). What a device needs: [devices](../../docs/devices.md).
