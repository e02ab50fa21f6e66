"""A process that hosts devices of the demonstration, each with its own examples and history.

Run as ``python -m fcp_platform.demo.devices POPULATION AT_ONCE FOLDER...``; every folder is one
device, and so many of them run a plan at the same time. The server's address comes on the first
line of standard input, so that the process can load TensorFlow while the server's program does the
same. It is all that the process learns of the program: the rest is the Federated Compute protocol
over HTTP. Standard input is the life line, too: when it closes, the process ends and prints what
its devices did as one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from fcp_core.client import Client, History, Outcome, TFRecordStore
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_platform.demo.data import COLLECTION_URI

EXAMPLES = "examples.tfrecord"
HISTORY = "history.sqlite"


@dataclass
class Work:
    """What the devices of one process did.

    :param computation_seconds: time spent in plans, added up over the devices.
    """

    sessions: int = 0
    contributed: int = 0
    failed: int = 0
    computation_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


def host(
    server: str, population: str, at_once: int, folders: list[Path], stop: threading.Event
) -> Work:
    """Be a device for each folder until *stop* is set; return what they did.

    :param server: the server's address.
    :param at_once: how many of them run a plan at the same time.
    :param folders: each has the file :data:`EXAMPLES`; the history is kept beside it.
    """
    work = Work()
    lock = threading.Lock()
    executors = {"tensorflow_spec": TensorFlowExecutor(at_once=at_once)}
    clients = [
        Client(
            server,
            population,
            stores={COLLECTION_URI: TFRecordStore(folder / EXAMPLES)},
            history=History(folder / HISTORY),
            session=folder.name,
            executors=executors,
        )
        for folder in folders
    ]

    def live(client: Client) -> None:
        for result in client.run(num_rounds=-1):
            if stop.is_set():
                return
            with lock:
                work.sessions += 1
                work.contributed += result.outcome is Outcome.CONTRIBUTED
                work.failed += result.outcome is Outcome.FAILED
                work.computation_seconds += sum(task.computation_seconds for task in result.tasks)
                work.bytes_sent += result.bytes_sent
                work.bytes_received += result.bytes_received

    threads = [threading.Thread(target=live, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    stop.wait()
    for client in clients:
        client.interrupt()
    for thread in threads:
        thread.join(timeout=10)
    for client in clients:
        client.close()
    return work


def main() -> None:
    """Host devices until standard input closes."""
    population, at_once, *folders = sys.argv[1:]
    import tensorflow  # noqa: F401  # loaded now, while there is time

    gc.freeze()  # TensorFlow's modules stay; no collection needs to look at them again
    server = sys.stdin.readline().strip()
    if not server:
        return
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    work = host(server, population, int(at_once), [Path(folder) for folder in folders], stop)
    print(json.dumps(asdict(work)), flush=True)


if __name__ == "__main__":
    main()
