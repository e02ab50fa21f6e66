"""The demonstration without TensorFlow: a Python task, whose devices train with NumPy."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import StatusError
from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread
from fcp_core.tasks.python import PythonTask
from fcp_platform.demo import light_digits as digits
from fcp_platform.demo.display import Board
from fcp_platform.demo.hosts import Hosts, hosted
from fcp_platform.demo.settings import HELD_OUT, POPULATION, DemoResult, Settings

#: Devices come back at once, wait at the server until there is a task, and get it in one piece.
_IN_A_HURRY = {
    "retry_min": "0s",
    "retry_max": "0s",
    "check_in_hold": "30s",
    "inline_resources_below": "1MiB",
}
#: The first hand of those that write the held-out digits: there are fewer devices.
_HELD_OUT_HANDS = 1000


def run(settings: Settings, board: Board) -> DemoResult:
    """Run the demonstration.

    :raises UsageError: for settings that do not fit, if a client process ends early, or if a round
        has no result.
    """
    settings.check()
    began = time.perf_counter()
    result = DemoResult()
    plugins = Plugins.load(
        config_file=settings.config_file,
        overrides={**_IN_A_HURRY, **settings.choices()},
        overrides_origin="the command line",
        extra=[board],
    )
    task = PythonTask(
        population=POPULATION,
        name="train/digits",
        task="learn",
        goal_count=settings.contributions,
        settings={"epochs": 5, "rate": 0.1, "batch": 8},
        collection_uri=digits.COLLECTION_URI,
        more={"deadline": settings.round_deadline},
    )
    # Hands that no device has.
    held_out = np.concatenate(
        [digits.write(_HELD_OUT_HANDS + n, settings.seed, HELD_OUT // 6) for n in range(6)]
    )
    command = ["-m", "fcp_platform.demo.light_devices", POPULATION, str(settings.seed)]
    with (
        ThreadPoolExecutor(1) as pool,
        hosted(
            range(settings.devices), settings.processes, result.devices, command=command
        ) as hosts,
        ServerThread(Server(plugins, populations=[POPULATION], port=settings.port)) as server,
    ):
        hosts.start(server.server.url)
        result.seconds["start-up"] = time.perf_counter() - began
        network = digits.initial(settings.seed)
        for number in range(1, settings.rounds + 1):
            with board.round(number) as figures:
                waiting = pool.submit(server.complete, task.to_spec(network))
                answer = task.decode(_outcome(waiting, hosts, number))
                network = {name: np.asarray(answer.arrays[name]) for name in network}
                loss, accuracy = digits.evaluate(network, held_out)
                figures.update(loss=loss, accuracy=accuracy)
            result.accuracy.append(accuracy)
        # While the server is there: otherwise they would not find it any more.
        hosts.stop()
    result.seconds["whole run"] = time.perf_counter() - began
    return result


def _outcome(waiting: Future[bytes], hosts: Hosts, number: int) -> bytes:
    """Return a round's result, but fail as soon as a client process does."""
    while not waiting.done():
        hosts.check()
        wait([waiting], timeout=0.5)
    try:
        return waiting.result()
    except StatusError as error:
        raise UsageError(f"round {number} has no result: {error.message}") from error
