"""Real servers that die by SIGKILL at each step of the release of a result with noise.

A plugin (``killer.py``) kills the server from within, so that no step is missed; here it is started
again, has devices contribute, and what it says is held against its ledger.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.crashing.killer import STEPS
from benchmarks.crashing.kills import ROOT, SETTINGS, TOKEN, WAIT, Server
from benchmarks.crashing.nursery import Nursery
from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, RetryPolicy
from fcp_core.client.python_tasks import PythonTaskExecutor
from fcp_core.errors import UsageError
from fcp_core.protocol.python_plan import KIND
from fcp_core.protocol.status import StatusError
from fcp_core.tasks.python import ArraySpec, PythonTask

SOURCE = ROOT / "aggregators" / "privacy" / "src"
POPULATION = "phones"
NOISE = 2.0
#: What one release costs: rho of a Gaussian is 1 / (2 noise²).
RHO = 1 / (2 * NOISE**2)
GOAL = 2


class Devices:
    """Contribute to whatever there is, until they are stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(GOAL)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End them, and wait for them."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        def give(arrays: Any, examples: Any, options: Any) -> Any:
            return {"value": np.ones(4, np.float32)}, 1

        given: dict[str, Any] = {
            "stores": CallableStore(lambda _: iter([b""])),
            "executors": {KIND: PythonTaskExecutor({"give": give})},
            "retry": RetryPolicy(attempts=4, delay=0.1),
            "timeout": 30.0,
        }
        while not self._stopped.is_set():
            try:
                with Client(self._url, POPULATION, **given) as device:
                    device.run_once()
            except OSError:
                pass
            self._stopped.wait(0.05)


def kill_releases(kills: int, seed: int, folder: Path) -> int:
    """Kill servers at so many steps of releases; return 1 if a promise was broken.

    :param folder: where the server's log goes then.
    """
    rng = random.Random(seed)
    steps = [step for _, step in zip(range(kills), itertools.cycle(STEPS), strict=False)]
    rng.shuffle(steps)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fcp-crash-") as place:
        problems, released, drawn = _run(Path(place), steps)
        if problems:
            kept = folder / "crash-release-kills.log"
            kept.write_text("".join(f.read_text() for f in Path(place).glob("server-*.log")))
            problems.append(f"the server's log: {kept}")
    print(f"kills in releases   {kills} in {time.monotonic() - began:.0f} s")
    for step, count in sorted(Counter(steps).items(), key=lambda item: STEPS.index(item[0])):
        print(f"  {step:<30} {count}")
    print(f"releases            {released}, of {drawn} draws")
    print(f"promises            {'; '.join(problems) or 'all were kept'}", flush=True)
    return 1 if problems else 0


def _run(folder: Path, steps: list[str]) -> tuple[list[str], int, int]:
    plan, draws = folder / "steps.txt", folder / "draws.txt"
    plan.write_text("".join(f"{step}\n" for step in steps))
    draws.write_text("")
    settings = {
        **SETTINGS,
        "storage": "sqlite",
        "storage.sqlite.path": str(folder / "db"),
        "aggregator": "dp_gaussian",
        "aggregator.dp_gaussian.clip": "2",
        "aggregator.dp_gaussian.noise_multiplier": str(NOISE),
        "privacy.rho": "1000",
        "privacy.watermark": str(folder / "ledger.mark"),
        "plugins": f"fcp_privacy.plugin:PrivacyPlugin,{Path(__file__).with_name('killer.py')}",
    }
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(SOURCE), str(ROOT))),
        "FCP_ADMIN__TOKEN": TOKEN,
        "FCP_TOKEN_KEYS": f"deployment {secrets.token_hex(16)},01 {secrets.token_hex(32)}",
        "CRASH_STEPS": str(plan),
        "CRASH_DRAWS": str(draws),
    }
    results: dict[str, tuple[str, bytes]] = {}
    with Nursery(environment) as nursery:
        server = Server(folder, settings, nursery)
        problems = _released(server, plan, results)
    drawn = [line.split() for line in draws.read_text().splitlines()]
    if not problems:
        problems = _unkept(_exported(folder, settings, environment), folder, results, drawn)
    return problems, len(results), len(drawn)


def _released(server: Server, plan: Path, results: dict[str, tuple[str, bytes]]) -> list[str]:
    """Have one release after another until all kills have been; return what went wrong."""
    problems: list[str] = []
    server.start()
    devices = Devices(server.url)
    try:
        while plan.read_text() or not results:
            _release(server, f"release/{len(results)}", results)
        _release(server, f"release/{len(results)}", results)
        # Once more, so that nothing is in memory only.
        server.kill()
        server.start()
        for name, (task_id, before) in results.items():
            if _asked(server, lambda admin, task=task_id: admin.result(task)) != before:
                problems.append(f"the result of {name} has changed")
    except TimeoutError as error:
        problems.append(str(error))
    finally:
        devices.stop()
        server.kill()
    return problems


def _release(server: Server, name: str, results: dict[str, tuple[str, bytes]]) -> None:
    """Have a task, and see its result as soon as anybody can."""
    task = PythonTask(
        POPULATION,
        name,
        "give",
        goal_count=GOAL,
        outputs={"value": ArraySpec("float32", (4,))},
        aggregation="mean",
        sum_weights=False,
    )
    spec = task.to_spec({})
    task_id = _asked(server, lambda admin: admin.submit(spec, key=name)).task_id
    ended = _asked(server, lambda admin: admin.wait(task_id, 1.0), lambda ended: ended.is_final)
    if ended.state != "completed":
        raise TimeoutError(f"{name} ended so: {ended.error}")
    seen = [_asked(server, lambda admin: admin.result(task_id)) for _ in range(2)]
    if seen[0] != seen[1]:
        raise TimeoutError(f"two results of {name} were seen")
    results[name] = (task_id, seen[0])


def _asked(server: Server, work: Any, good: Any = lambda _: True) -> Any:
    """Ask a server that dies all the time, until it answers what is wanted."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if server.listens():
            try:
                with AdminClient(server.url, TOKEN, patience=0.0) as admin:
                    answer = work(admin)
                if good(answer):
                    return answer
            except (StatusError, UsageError, OSError):
                pass
        time.sleep(0.05)
    raise TimeoutError("the server does not answer")


def _exported(folder: Path, settings: dict[str, str], environment: dict[str, str]) -> Any:
    """Return the ledger, as an auditor reads it."""
    pairs = itertools.chain.from_iterable(("-s", f"{k}={v}") for k, v in settings.items())
    told = subprocess.run(
        [sys.executable, "-m", "fcp_core", *pairs, "privacy", "export", POPULATION],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise RuntimeError(f"the ledger cannot be read: {told.stderr}")
    return json.loads(told.stdout)


def _unkept(
    exported: Any, folder: Path, results: dict[str, tuple[str, bytes]], drawn: list[list[str]]
) -> list[str]:
    """Hold the ledger, and what was drawn, against what was seen."""
    problems = []
    booked = Counter(entry["name"] for entry in exported["entries"])
    if booked != Counter(results.keys()):
        problems.append(f"booked are {dict(booked)}, and released {list(results)}")
    spent = sum(account["spent"]["rho"] for account in exported["accounts"])
    if abs(spent - RHO * len(results)) > 1e-9:
        problems.append(f"rho {spent} is booked for {len(results)} releases")
    for name, (_, result) in results.items():
        if [name, hashlib.sha256(result).hexdigest()] not in drawn:
            problems.append(f"the result of {name} was never drawn")
    kept = folder / "ledger.mark"
    mark = json.loads(kept.read_text()) if kept.exists() else {}
    if [*mark.values()] != [len(results)]:
        problems.append(f"the watermark is {mark} after {len(results)} releases")
    return problems
