"""What a program shows in a notebook, with a real kernel behind it: an event loop that runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Runs the cells on standard input in a kernel of this Python, and prints them with their outputs.
#: It is a process of its own, since a notebook's client leaves sockets to the end of one.
RUN = """
import json, os, sys
import nbclient, nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
sources = json.load(sys.stdin)
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])
manager = AsyncKernelManager()
manager._kernel_spec = KernelSpec(
    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    display_name="here",
    language="python",
)
nbclient.NotebookClient(book, timeout=None, startup_timeout=300, km=manager).execute()
print(json.dumps(book.cells))
"""


def outputs(cell):
    """Return what a cell shows: by kind of data, and its printed text."""
    shown = {"text": "", "text/html": ""}
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            shown["text"] += output["text"]
        else:
            for kind, data in output["data"].items():
                shown[kind] = shown.get(kind, "") + data
    return shown


def run(tmp_path, *sources):
    """Run cells in a kernel of this Python; return what each shows."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(sources),
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [outputs(cell) for cell in json.loads(done.stdout.splitlines()[-1])]


def test_bars_pictures_and_tables_are_shown(tmp_path):
    bar, picture, table = run(
        tmp_path,
        "import fcp_platform\n"
        "for number in fcp_platform.progress(range(1, 4), 'training'):\n"
        "    print('round', number)",
        "fcp_platform.plot([{'loss': 1.0}, {'loss': 0.5}])",
        "from fcp_core.tasks.tables import Column, Table\n"
        "Table((Column('app', 'string', ['<chess>']), Column('n', 'int64', [3])))",
    )
    assert [f"round {number}" in bar["text"] for number in (1, 2, 3)] == [True] * 3
    # The bar is one piece of markup, which was changed in its place.
    assert re.fullmatch(
        r'<div>training <progress value="3" max="3"></progress> 3 of 3, \d+ s</div>',
        bar["text/html"],
    )
    assert "\x1b[" not in bar["text"]
    assert picture["image/svg+xml"].startswith("<svg")
    assert "<polyline" in picture["image/svg+xml"]
    assert "<td>&lt;chess&gt;</td>" in table["text/html"]


PROGRAM = """
import asyncio, collections, threading
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import fcp_platform
from fcp_core.client import CallableStore, Client
from fcp_core.protocol.protos.plan_pb2 import ExampleSelector

@tff.tensorflow.computation(tff.SequenceType(np.str_))
def total(examples):
    return examples.reduce(np.int64(0), lambda s, x: s + tf.strings.to_number(x, tf.int64))

@tff.federated_computation(tff.FederatedType(tff.SequenceType(np.str_), tff.CLIENTS))
def sum_up(data):
    return tff.federated_sum(tff.federated_map(total, data))
"""
ROUNDS = """
assert asyncio.get_running_loop().is_running()
context = fcp_platform.FederatedContext("notebook/numbers")
context.__enter__()
tff.framework.set_default_context(context)
source = fcp_platform.FederatedDataSource(
    "notebook/numbers", ExampleSelector(collection_uri="app:/numbers")
).iterator()
stop = threading.Event()
def live():
    store = CallableStore(lambda selector: [b"3", b"4"])
    with Client(context.server_url, "notebook/numbers", stores={"app:/numbers": store}) as device:
        while not stop.is_set():
            stop.wait(min(device.run_once().retry_after, 0.2))
device = threading.Thread(target=live)
device.start()
sums = []
computation = fcp_platform.FederatedComputation(sum_up, name="sum_up")
for number in fcp_platform.progress(range(2)):
    sums.append(int(await computation(source.select(1)).get_value()))
stop.set()
device.join()
context.__exit__(None, None, None)
sums
"""


@pytest.mark.tff
def test_a_program_runs_within_the_loop_of_a_notebook(tmp_path):
    pytest.importorskip("tensorflow_federated")
    _, rounds = run(tmp_path, PROGRAM, ROUNDS)
    assert rounds["text/plain"].endswith("[7, 7]")
    assert "2 of 2" in rounds["text/html"]
