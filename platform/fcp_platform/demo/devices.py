"""A process that hosts devices of the demonstration, each with its own examples and history.

Run as ``python -m fcp_platform.demo.devices POPULATION AT_ONCE DROP FOLDER...``; every folder is
one device, so many of them run a plan at the same time, and such a fraction vanishes while it
contributes. The server's address comes on the first line of standard input, so that the process can
load TensorFlow while the server's program does the same. It is all that the process learns of the
program: the rest is the Federated Compute protocol over HTTP. Standard input is the life line, too:
when it closes, the process ends and prints what its devices did as one line of JSON.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import threading
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcp_core.client import Client, History, Outcome, PlanResults, TFRecordStore
from fcp_core.client.plain import PlainUpload
from fcp_core.client.protocols import DeviceProtocol, Step
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
from fcp_core.protocol.status import Code, StatusError
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


class Vanishing(DeviceProtocol):
    """Another protocol's device, which now and then vanishes before one of its steps.

    :param fraction: how often.
    """

    comes_back = (Code.ABORTED,)

    def __init__(self, protocol: DeviceProtocol, fraction: float, seed: str) -> None:
        self._protocol, self._fraction = protocol, fraction
        self._random = random.Random(seed)

    def accepts(self, assignment: TaskAssignment) -> bool:
        """Whether the assignment is one of the other protocol."""
        return self._protocol.accepts(assignment)

    def contribute(
        self, assignment: TaskAssignment, results: PlanResults
    ) -> Generator[Step, Any, None]:
        """Contribute, or begin to."""
        # No protocol here has more steps than that, and the plain one has four.
        left = self._random.randrange(6)
        vanishes = self._random.random() < self._fraction
        steps = self._protocol.contribute(assignment, results)
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            if vanishes and not left:
                raise StatusError(Code.ABORTED, "the device vanished")
            left -= 1
            answer = yield step


def protocols(drop: float, seed: str) -> list[DeviceProtocol]:
    """Return the installed protocols' devices, the plain one last."""
    found = [f.device() for f in Plugins.load().protocols.values() if f.device is not None]
    return [Vanishing(protocol, drop, seed) for protocol in (*found, PlainUpload())]


def host(
    server: str,
    population: str,
    at_once: int,
    folders: list[Path],
    stop: threading.Event,
    drop: float = 0.0,
) -> Work:
    """Be a device for each folder until *stop* is set; return what they did.

    :param server: the server's address.
    :param at_once: how many of them run a plan at the same time.
    :param drop: the fraction of the devices that vanish while they contribute.
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
            protocols=protocols(drop, folder.name),
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
    population, at_once, drop, *folders = sys.argv[1:]
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
    paths = [Path(folder) for folder in folders]
    work = host(server, population, int(at_once), paths, stop, float(drop))
    print(json.dumps(asdict(work)), flush=True)


if __name__ == "__main__":
    main()
