"""A process that hosts devices, each with its own digits.

Run as ``python devices.py POPULATION FILE...``; each file holds one device's examples. The server's
address comes on the first line of standard input. The process ends when that closes. What a server
may have it run is registered here, by the devices' owner: the task ``train``, and nothing else.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from digits import COLLECTION_URI, EXAMPLE, train

from fcp_core.client import CallableStore, Client, task


@task("train")
def train_digits(
    arrays: Mapping[str, np.ndarray], examples: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Train on the device's digits; they count by their number."""
    mine = np.frombuffer(b"".join(examples), EXAMPLE)
    network = train(
        dict(arrays), mine, settings["epochs"], settings["learning_rate"], settings["batch"]
    )
    return network, len(mine)


def main() -> None:
    """Host devices until standard input closes."""
    population, *files = sys.argv[1:]
    server = sys.stdin.readline().strip()

    def make(path: str) -> Client:
        examples = np.load(path).tobytes()
        size = EXAMPLE.itemsize
        parts = [examples[i : i + size] for i in range(0, len(examples), size)]
        store = CallableStore(lambda selector: parts)
        # On one machine, compressing would only take time.
        return Client(server, population, stores={COLLECTION_URI: store}, compress=False)

    def live(client: Client) -> None:
        for _ in client.run(num_rounds=-1):
            pass

    clients = [make(path) for path in files]
    threads = [threading.Thread(target=live, args=(client,), daemon=True) for client in clients]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    sys.stdin.read()
    for client in clients:
        client.interrupt()
    for thread in threads:
        thread.join(timeout=10)


if __name__ == "__main__":
    main()
