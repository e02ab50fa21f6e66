"""Real servers that are killed with SIGKILL while devices contribute to one task after another."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crashing.nursery import Nursery, is_alive, kill
from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, RetryPolicy, make_query_result
from fcp_core.tasks.tables import Table
from fcp_core.tasks.taskfile import parse_task

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-for-the-crash-test"
POPULATION = "phones"
#: Kills of one set of servers; then all that they said is checked, and others begin.
IN_A_SET = 25
GOAL = 40
#: Every third set has two members on PostgreSQL.
WITH_MEMBERS = 3
#: How long anything may take on a busy machine, in seconds.
WAIT = 180.0
#: How long the program waits for one task while servers are killed.
LONGEST = 1800.0
#: Each contribution brings a key of its own, so the results say which are in them, how often.
TASK = f"""
[task]
population = "{POPULATION}"
name = "crash"
goal_count = {GOAL}
deadline = "1h"
[[query]]
collection_uri = "app:/crash"
[query.vectors]
key = "string"
times = "int64"
[result]
group_by = ["key"]
sum = ["times"]
"""
SETTINGS = {
    "assignment_timeout": "5s",
    "retry_min": "50ms",
    "retry_max": "200ms",
    "polling_interval": "50ms",
    "late_contributions": "refuse",
}


class Server:
    """``fcp serve`` as a process, on a port that it keeps when it is started again."""

    def __init__(self, folder: Path, settings: dict[str, str], nursery: Nursery) -> None:
        with socket.create_server(("localhost", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://localhost:{self.port}/"
        self.log = folder / f"server-{self.port}.log"
        self._folder, self._nursery = folder, nursery
        pairs = itertools.chain.from_iterable(("-s", f"{k}={v}") for k, v in settings.items())
        self._arguments = [*pairs, "serve", "--port", str(self.port)]
        self._pid = 0

    def start(self) -> None:
        """Start it, or start it again."""
        self._pid = self._nursery.start(self._arguments, self._folder, self.log)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._pid:
            kill(self._pid)

    def listens(self) -> bool:
        """Whether it accepts connections; one that has ended by itself is started again.

        While it is down, another program of this machine may have its port for a moment.
        """
        if self._pid and not is_alive(self._pid):
            time.sleep(0.5)
            self.start()
        try:
            with socket.create_connection(("localhost", self.port), 5):
                return True
        except OSError:
            return False


class Crowd:
    """Devices that contribute again and again, each time with another key."""

    def __init__(self, urls: list[str], count: int) -> None:
        self.told_ok: list[str] = []
        self._urls = urls
        self._stopped = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all devices, and wait for them."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stopped.is_set():
            key = f"key {next(self._numbers)}"
            vectors = {"key": [key], "times": np.array([1], np.int64)}
            answer = make_query_result(vectors)
            store = CallableStore(lambda _: (), query=lambda _, found=answer: found)
            try:
                with Client(
                    rng.choice(self._urls),
                    POPULATION,
                    stores={"app:/crash": store},
                    retry=RetryPolicy(attempts=4, delay=0.1),
                    timeout=30.0,
                ) as device:
                    outcome = device.run_once().outcome.name
            except OSError:
                outcome = "FAILED"
            if outcome == "CONTRIBUTED":
                self.told_ok.append(key)
            else:
                self._stopped.wait(0.05)


class Program(threading.Thread):
    """Has one task after another until it is told to stop, and keeps the results."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__(daemon=True)
        self.results: dict[str, bytes] = {}
        self.stopping = False
        self.error: BaseException | None = None
        self._urls = urls

    def run(self) -> None:
        """Submit, wait, fetch; in the end, fetch everything again."""
        try:
            spec = parse_task(TASK).to_spec()
            while not self.stopping:
                key = f"task {len(self.results)}"
                task = self._ask(lambda admin, key=key: admin.submit(spec, key=key)).task_id
                ended = self._ask(lambda admin, task=task: admin.wait(task))
                if ended.state != "completed" or ended.contributed != GOAL:
                    raise RuntimeError(f"{ended}")
                self.results[task] = self._ask(lambda admin, task=task: admin.result(task))
            for task, before in self.results.items():
                if self._ask(lambda admin, task=task: admin.result(task)) != before:
                    raise RuntimeError(f"the result of task {task} has changed")
        except BaseException as error:
            self.error = error

    def _ask(self, work: Callable[[AdminClient], Any]) -> Any:
        """Ask any server, until one answers: they are killed all the time, and no task is hasty."""
        end = time.monotonic() + LONGEST
        for url in itertools.cycle(self._urls):
            try:
                with AdminClient(url, TOKEN, patience=10.0) as admin:
                    return work(admin)
            except Exception:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


def kill_often(kills: int, seed: int, end: float, folder: Path) -> int:
    """Kill real servers so often; return how many sets of them broke a promise.

    :param end: no set begins after that, by the monotonic clock.
    :param folder: where the logs of a set go that did.
    """
    rng = random.Random(seed)
    began, done, wrong = time.monotonic(), 0, 0
    told = tasks = sets = members = 0
    while done < kills and time.monotonic() < end:
        count = min(IN_A_SET, kills - done)
        shared = sets % WITH_MEMBERS == WITH_MEMBERS - 1
        with tempfile.TemporaryDirectory(prefix="fcp-crash-") as place:
            with _servers(Path(place), shared=shared) as servers:
                problems, crowd, program = _one_set(servers, count, rng)
            if problems:
                wrong += 1
                kept = folder / f"crash-kills-{sets}.log"
                kept.write_text("\n".join(s.log.read_text(errors="replace") for s in servers))
                print(f"set {sets}: {'; '.join(problems)} (the servers' log: {kept})", flush=True)
        done, sets, members = done + count, sets + 1, members + count * shared
        told, tasks = told + len(crowd.told_ok), tasks + len(program.results)
    seconds = time.monotonic() - began
    print(f"real kills          {done} in {seconds:.0f} s, {members} of them of members")
    print(f"sets of servers     {sets}, {wrong} broke a promise")
    print(f"contributions       {told:,} told OK, in {tasks} tasks", flush=True)
    return wrong


def _one_set(
    servers: list[Server], kills: int, rng: random.Random
) -> tuple[list[str], Crowd, Program]:
    for server in servers:
        server.start()
    urls = [server.url for server in servers]
    program = Program(urls)
    program.start()
    crowd = Crowd(urls, 4)
    problems: list[str] = []
    try:
        for _ in range(kills):
            server = rng.choice(servers)
            _until(server.listens)
            time.sleep(rng.uniform(0.0, 0.6))
            server.kill()
            server.start()
        program.stopping = True
        program.join(2 * WAIT)
    except TimeoutError as error:
        problems.append(f"{error}: {server.log.read_text(errors='replace')[-500:]}")
        program.stopping = True
    finally:
        crowd.stop()
    if program.is_alive():
        problems.append("the last task does not end")
    if program.error is not None:
        problems.append(f"the program failed: {program.error}")
    found: Counter[str] = Counter()
    for result in program.results.values():
        counts = dict(Table.of(result).rows())
        found.update({str(key): int(times) for key, times in counts.items()})
        if len(counts) != GOAL:
            problems.append(f"a result has {len(counts)} keys, not {GOAL}")
    twice = [key for key, times in found.items() if times != 1]
    if twice:
        problems.append(f"{len(twice)} contributions count twice")
    # The last task may go on without the program, which has stopped.
    lost = [key for key in crowd.told_ok if key not in found]
    if lost:
        problems.append(f"{len(lost)} of {len(crowd.told_ok)} contributions are lost")
    return problems, crowd, program


@contextmanager
def _servers(folder: Path, *, shared: bool) -> Iterator[list[Server]]:
    """Make a server on SQLite, or two members on a PostgreSQL of their own."""
    keys = f"deployment {secrets.token_hex(16)},01 {secrets.token_hex(32)}"
    environment = {**os.environ, "FCP_ADMIN__TOKEN": TOKEN, "FCP_TOKEN_KEYS": keys}
    if not shared:
        settings = {**SETTINGS, "storage": "sqlite", "storage.sqlite.path": str(folder / "db")}
        with _started(1, folder, settings, environment) as servers:
            yield servers
        return
    source = str(ROOT / "plugins" / "storage_postgres" / "src")
    if source not in sys.path:
        sys.path.append(source)
    from fcp_postgres.testing import PostgresServer

    with PostgresServer() as database:
        environment["PYTHONPATH"] = os.pathsep.join((source, str(ROOT)))
        environment["FCP_STORAGE_POSTGRES__URL"] = database.url
        settings = {
            **SETTINGS,
            "plugins": "fcp_postgres.plugin",
            "storage": "postgres",
            "lease_seconds": "2s",
        }
        with _started(2, folder, settings, environment) as servers:
            yield servers


@contextmanager
def _started(
    count: int, folder: Path, settings: dict[str, str], environment: dict[str, str]
) -> Iterator[list[Server]]:
    with Nursery(environment) as nursery:
        servers = [Server(folder, settings, nursery) for _ in range(count)]
        try:
            yield servers
        finally:
            for server in servers:
                server.kill()


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("a server does not listen")
        time.sleep(0.02)
