"""A process that hosts devices of the light demonstration, each with digits in its own hand.

Run as ``python -m fcp_platform.demo.light_devices POPULATION SEED DEVICE...``. The server's address
comes on the first line of standard input; when that closes, the process ends and prints what its
devices did as one line of JSON. All that they learn comes over the Federated Compute protocol.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcp_core.client import CallableStore, Client, Outcome, PythonTaskExecutor
from fcp_core.protocol.python_plan import KIND
from fcp_platform.demo.light_digits import COLLECTION_URI, EXAMPLE, train, write

#: How many digits a device has.
COUNT = 60


def learn(
    arrays: Mapping[str, Any], examples: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], float]:
    """Train on the device's digits; they count by their number."""
    mine = np.frombuffer(b"".join(examples), EXAMPLE)
    network = train(arrays, mine, settings["epochs"], settings["rate"], settings["batch"])
    return network, len(mine)


def main() -> None:
    """Host devices until standard input closes."""
    population, seed, *numbers = sys.argv[1:]
    hands = [write(int(number), int(seed), COUNT) for number in numbers]
    server = sys.stdin.readline().strip()
    if not server:
        return
    counts = {"sessions": 0, "contributed": 0, "failed": 0}
    lock = threading.Lock()

    def make(examples: Any) -> Client:
        parts = [example.tobytes() for example in examples]
        return Client(
            server,
            population,
            stores={COLLECTION_URI: CallableStore(lambda selector: parts)},
            executors={KIND: PythonTaskExecutor({"learn": learn})},
        )

    def live(client: Client) -> None:
        for result in client.run(num_rounds=-1):
            with lock:
                counts["sessions"] += 1
                counts["contributed"] += result.outcome is Outcome.CONTRIBUTED
                counts["failed"] += result.outcome is Outcome.FAILED

    clients = [make(hand) for hand in hands]
    threads = [threading.Thread(target=live, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    for client in clients:
        client.interrupt()
    for thread in threads:
        thread.join(timeout=10)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
