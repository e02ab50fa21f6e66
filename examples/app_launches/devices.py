"""A process that hosts devices, each with its own record of launched apps.

Run as ``python devices.py SERVER FIRST COUNT THREADS``: be the devices FIRST to FIRST + COUNT - 1,
THREADS at a time. Every device is a client of its own and speaks the Federated Compute protocol
over HTTP; it comes back until it has contributed once. The process ends when all have, or when its
standard input closes, and prints how many sessions it took.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fcp_core.client import CallableStore, Client, Outcome, make_query_result

POPULATION = "phones/launches"
COLLECTION_URI = "app:/launches"
APPS = (
    *("messages", "browser", "camera", "maps", "music", "mail"),
    *("weather", "calendar", "notes", "chess", "podcasts", "stars"),
)
PARTS_OF_DAY = ("morning", "noon", "evening", "night")


def launches(device: int) -> dict[tuple[str, str], int]:
    """Return how often the device's owner launched which app in which part of the day."""
    rng = np.random.default_rng(device)
    popularity = 1 / np.arange(1, len(APPS) + 1) ** 1.2
    habit = rng.gamma(popularity * 4) + 1e-9
    counts: dict[tuple[str, str], int] = {}
    for part, busy in zip(PARTS_OF_DAY, (6, 4, 9, 2), strict=True):
        drawn = rng.multinomial(rng.poisson(busy), habit / habit.sum())
        counts |= {(app, part): int(n) for app, n in zip(APPS, drawn, strict=True) if n}
    return counts


def rows(device: int) -> Mapping[str, Any]:
    """Return the device's answer to the task's query: a row for each app and part of the day."""
    counts = launches(device)
    return {
        "app": [app for app, _ in counts],
        "part_of_day": [part for _, part in counts],
        "launches": np.array(list(counts.values()), np.int64),
        "device": np.ones(len(counts), np.int64),
    }


def session(server: str, device: int) -> tuple[bool, float]:
    """Go through one session as a device; return whether it contributed, and when to come back."""
    store = CallableStore(lambda selector: (), query=lambda query: make_query_result(rows(device)))
    with Client(server, POPULATION, stores={COLLECTION_URI: store}) as client:
        result = client.run_once()
    return result.outcome is Outcome.CONTRIBUTED, result.retry_after


def main() -> None:
    """Host the devices."""
    if len(sys.argv) != 5:
        sys.exit("usage: python devices.py SERVER FIRST COUNT THREADS")
    server, first, count, threads = sys.argv[1], *map(int, sys.argv[2:])
    waiting: queue.PriorityQueue[tuple[float, int]] = queue.PriorityQueue()
    for device in range(first, first + count):
        waiting.put((0.0, device))
    stop = threading.Event()
    lock = threading.Lock()
    sessions = contributed = 0

    def live() -> None:
        nonlocal sessions, contributed
        while not stop.is_set():
            try:
                due, device = waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            done, retry_after = session(server, device)
            with lock:
                sessions += 1
                contributed += done
                if contributed == count:
                    stop.set()
            if not done:
                waiting.put((time.monotonic() + retry_after, device))

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    workers = [threading.Thread(target=live, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"{count} devices: {contributed} contributed in {sessions} sessions", flush=True)


if __name__ == "__main__":
    main()
