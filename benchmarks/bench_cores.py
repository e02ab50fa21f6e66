"""What a second processor brings: contributions of 4 MB, uncompressed and as gzip.

Five servers run side by side and are measured in turn, each with the same connections and bytes:

* one process of ours that may use one processor;
* one process of ours that may use all of them: its threads fold and gunzip;
* two processes of ours;
* bare Tornado, which receives, gunzips and adds the same bytes, in one process on one processor;
* bare Tornado in two processes that share the port.

The clients run on the same machine and cost processor time too, mostly the kernel's for sending. On
two processors, two processes can therefore be faster than one by at most 2 s / (s + c), with s the
server's time for a contribution and c the clients' (one process leaves the other processor to
them). That bound is printed beside each figure. What does not depend on it is the server's own
time: two processes take 2 / s2 contributions a second between them where one takes 1 / s1.

    python benchmarks/bench_cores.py [--quick]
"""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from goals import Goal, main
from http_load import Device
from serving import running

from fcp_core.protocol.checkpoint import write_checkpoint

ELEMENTS = 1_000_000
CONNECTIONS = 16
#: How much faster two processes shall be than one.
LIMIT = 1.7

#: Ours and the bare one, by name: the kind, the processes, and whether on one processor only.
SERVERS = {
    "one process, one processor": ("fcp", 1, True),
    "one process, all processors": ("fcp", 1, False),
    "two processes": ("fcp", 2, False),
    "bare Tornado, one process": ("bare", 1, True),
    "bare Tornado, two processes": ("bare", 2, False),
}
_ONE, _THREADS, _TWO, _BARE_ONE, _BARE_TWO = SERVERS


# The clients: sockets and ready-made bytes.


class Client(Device):
    """A device with a kept connection, and which process has its other end."""

    def owner(self) -> str:
        """Return the socket of the other end, as ``/proc`` names it."""
        ends = self.connection.ports()
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if [int(fields[i].rpartition(":")[2], 16) for i in (1, 2)] == ends:
                return f"socket:[{fields[9]}]"
        raise RuntimeError("the connection is not in /proc/net/tcp")


def connect(url: str, pids: Sequence[int]) -> list[Client]:
    """Return connections, as many to each process: the kernel spreads them by chance."""
    wanted = {pid: CONNECTIONS // len(pids) for pid in pids}
    clients = []
    while any(wanted.values()):
        client = Client(url)
        client.connection.send("GET", "/healthz")
        name = client.owner()
        pid = next(pid for pid in pids if name in _descriptors(pid))
        if wanted[pid]:
            wanted[pid] -= 1
            clients.append(client)
        else:
            client.connection.close()
    return clients


def _descriptors(pid: int) -> set[str]:
    links = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.add(os.readlink(path))
        except OSError:
            continue
    return links


# Measuring.


@dataclass
class Rate:
    """The best that was seen.

    :param per_second: contributions.
    :param server: milliseconds of processor time for each, of all of the server's processes.
    :param client: milliseconds of processor time for each of the clients'.
    """

    per_second: float = 0.0
    server: float = float("inf")
    client: float = float("inf")

    def note(self, other: Rate) -> None:
        """Keep what is better."""
        self.per_second = max(self.per_second, other.per_second)
        self.server = min(self.server, other.server)
        self.client = min(self.client, other.client)


def cpu_time(pids: Sequence[int]) -> float:
    """Return the processor time of processes so far, in seconds.

    Of the threads that they have now: ``stat`` has those that ended, too, but counts in steps of
    ten milliseconds.
    """
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((t / "schedstat").read_text(encoding="ascii").split()[0]) for t in threads) / 1e9


def measure(kind: str, clients: list[Client], pids: Sequence[int], count: int, form: Form) -> Rate:
    """Send *count* contributions over all connections."""
    body, encoding = form.bodies[kind], form.encoding
    tasks = [clients[0].assign() for _ in range(count)] if kind == "fcp" else []
    left = iter(range(count))
    lock = threading.Lock()

    def work(client: Client) -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            if tasks:
                client.contribute(tasks[number], body, encoding)
            else:
                client.connection.post("/upload", body, encoding)

    server, own, start = cpu_time(pids), time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(work, clients))
    elapsed = time.perf_counter() - start
    return Rate(
        count / elapsed,
        1000 * (cpu_time(pids) - server) / count,
        1000 * (time.process_time() - own) / count,
    )


@dataclass(frozen=True)
class Form:
    """How contributions are sent.

    :param bodies: by the kind of server: a checkpoint, or its numbers alone.
    :param encoding: the content encoding; empty if there is none.
    """

    bodies: dict[str, bytes]
    encoding: str = ""


def make_forms() -> dict[str, Form]:
    """Return the forms by name."""
    numbers = np.random.default_rng(1).standard_normal(ELEMENTS).astype(np.float32)
    checkpoint = write_checkpoint({"update": numbers}, "federated_compute")
    bodies = {"fcp": checkpoint, "bare": numbers.tobytes()}
    packed = {kind: gzip.compress(body, 1) for kind, body in bodies.items()}
    return {
        "uncompressed": Form(bodies),
        "gzip": Form(packed, "gzip"),
    }


def run(quick: bool) -> dict[str, dict[str, Rate]]:
    """Measure all servers in turn, several times; return the rates by form and server."""
    forms = make_forms()
    repeats, count = (3, 64) if quick else (7, 160)
    rates = {form: {name: Rate() for name in SERVERS} for form in forms}
    with ExitStack() as stack:
        servers = {}
        for name, (kind, processes, pinned) in SERVERS.items():
            server = stack.enter_context(
                running(kind, ELEMENTS, processes=processes, pinned=pinned)
            )
            pids, clients = server.pids, connect(server.url, server.pids)
            for client in clients:
                stack.callback(client.connection.close)
            servers[name] = (kind, clients, pids)
        for title, form in forms.items():
            for kind, clients, pids in servers.values():
                measure(kind, clients, pids, CONNECTIONS, form)
            for _ in range(repeats):
                for name, (kind, clients, pids) in servers.items():
                    rates[title][name].note(measure(kind, clients, pids, count, form))
    return rates


def report(rates: dict[str, dict[str, Rate]]) -> None:
    """Print all figures."""
    for form, by_server in rates.items():
        print(form)
        for name, rate in by_server.items():
            one = by_server[_BARE_ONE if name.startswith("bare") else _ONE]
            bound = 2 * one.server / (one.server + one.client)
            print(
                f"  {name:28} {rate.per_second:7.1f}/s, CPU {rate.server:6.2f} ms, clients' "
                f"{rate.client:5.2f} ms;  rate x{rate.per_second / one.per_second:.2f} "
                f"(the clients allow {bound:.2f}), by CPU x{2 * one.server / rate.server:.2f}"
            )


def goals(quick: bool) -> list[Goal]:
    """Measure; return the goals."""
    rates = run(quick)
    report(rates)
    made = []
    for form, by_server in rates.items():
        one, two = by_server[_ONE], by_server[_TWO]
        what = f"two processes against one, 4 MB {form}"
        rate = two.per_second / one.per_second
        bare = by_server[_BARE_TWO].per_second / by_server[_BARE_ONE].per_second
        allowed = 2 * one.server / (one.server + one.client)
        limits = f"bare Tornado {bare:.2f}, the clients allow {allowed:.2f}"
        made.append(
            Goal("cores", f"{what}: contributions a second ({limits})", rate, LIMIT, at_most=False)
        )
        capacity = 2 * one.server / two.server
        bare = 2 * by_server[_BARE_ONE].server / by_server[_BARE_TWO].server
        title = f"{what}: by the server's CPU time (bare Tornado {bare:.2f})"
        made.append(Goal("cores", title, capacity, LIMIT, at_most=False))
    return made


if __name__ == "__main__":
    main(goals, __doc__)
