"""Federated averaging of a small network without TensorFlow: a server, devices, NumPy.

Thirty devices in client processes hold parts of scikit-learn's handwritten digits. Ten of them
train the network 64-64-10 in each round, five epochs each; the server takes the mean of their
networks, weighted by the number of examples.

    python examples/numpy_digits/run.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
POPULATION = "digits"


@contextmanager
def hosted(files: list[Path], processes: int, url: str, script: Path) -> Iterator[None]:
    """Run devices in processes of their own; they are ready when this is entered."""
    hosts = []
    try:
        for number in range(processes):
            command = [sys.executable, str(script), POPULATION, *map(str, files[number::processes])]
            hosts.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    # Small networks: the threads of a numerical library would only get in the way.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            )
        for host in hosts:
            assert host.stdin is not None  # both are pipes
            assert host.stdout is not None
            host.stdin.write(url + "\n")
            host.stdin.flush()
        for host in hosts:
            if not host.stdout.readline():
                raise RuntimeError("a process of devices ended early")
        yield
    finally:
        for host in hosts:
            host.stdin.close()
        for host in hosts:
            host.wait(timeout=30)
            host.stdout.close()


def main(script: Path = HERE / "devices.py", task: str = "train") -> None:
    """Run the example.

    :param script: hosts the devices.
    :param task: what they are asked to run.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--devices", type=int, default=30)
    parser.add_argument("--per-round", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    began = time.perf_counter()
    from digits import COLLECTION_URI, accuracy, initial, load

    from fcp_core.plugins.manager import Plugins
    from fcp_core.server.server import Server
    from fcp_core.server.thread import ServerThread
    from fcp_core.tasks.python import PythonTask, federated_averaging

    # Devices come back at once, wait at the server until there is a task, and get it in one piece.
    in_a_hurry = {
        "retry_min": "0s",
        "retry_max": "0s",
        "check_in_hold": "30s",
        "inline_resources_below": "1MiB",
    }
    plugins = Plugins.load(overrides=in_a_hurry)
    rounds = PythonTask(
        population=POPULATION,
        name="digits",
        task=task,
        goal_count=given.per_round,
        settings={"epochs": given.epochs, "learning_rate": 0.1, "batch": 8},
        collection_uri=COLLECTION_URI,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerThread(Server(plugins, populations=[POPULATION])) as server,
    ):
        training, held_out = load(given.seed, 360)
        files = [Path(folder, f"{number}.npy") for number in range(given.devices)]
        for path, part in zip(files, np.array_split(training, given.devices), strict=True):
            np.save(path, part)
        network = initial(given.seed)
        with hosted(files, given.processes, server.server.url, script):
            started = time.perf_counter()
            results = federated_averaging(rounds, network, rounds=given.rounds, run=server.complete)
            before = started
            for number, result in enumerate(results, 1):
                now = time.perf_counter()
                right = accuracy(dict(result.arrays), held_out)
                print(
                    f"round {number:2}: accuracy {right:.3f}, {result.weight:.0f} examples, "
                    f"{1000 * (now - before):.0f} ms",
                    flush=True,
                )
                before = time.perf_counter()
            seconds = time.perf_counter() - started
    whole = time.perf_counter() - began
    print(f"{given.rounds} rounds in {seconds:.3f} s, everything in {whole:.2f} s")


if __name__ == "__main__":
    main()
