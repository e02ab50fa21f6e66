"""How fast contributions come in, compared with a bare Tornado handler that adds the same bytes.

Two servers run in processes of their own: ours, and the least that Tornado can do. They are
measured in turns, a fraction of a second each, so that other load on the machine hits both. Gzip
bodies are compared with the decompressor itself, which undoes the same bytes in one call, in one
thread.

    python benchmarks/bench_ingest.py [--quick]
"""

from __future__ import annotations

import gzip
import importlib
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from goals import Goal, main
from http_load import REQUESTS_A_SESSION, Connection, Device, Rate, measure
from serving import Server, running

from fcp_core.protocol.checkpoint import write_checkpoint

CONNECTIONS = (1, 4, 16)
ELEMENTS = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """Ours and the limit, measured in turns.

    :param ratio: the median of the turns' ratios of pieces a second.
    """

    ours: Rate
    limit: Rate
    ratio: float


def in_turns(
    ours: Callable[[int], Rate], limit: Callable[[int], Rate], count: int, turns: int
) -> Comparison:
    """Measure two things by turns, *count* pieces at a time, after a turn that does not count."""
    ours(max(4, count // 4))
    limit(max(4, count // 4))
    pairs = []
    for turn in range(turns):
        # Whoever comes second finds a warmer machine.
        if turn % 2:
            second = limit(count)
            pairs.append((ours(count), second))
        else:
            first = ours(count)
            pairs.append((first, limit(count)))
    whole = [sum(rates[1:], rates[0]) for rates in zip(*pairs, strict=True)]
    ratios = [mine.per_second / other.per_second for mine, other in pairs]
    return Comparison(whole[0], whole[1], statistics.median(ratios))


def uploads(
    server: Server, devices: Sequence[Device], body: bytes, encoding: str = ""
) -> Callable[[int], Rate]:
    """Return how to measure contributions whose devices have their tasks already."""

    def run(count: int) -> Rate:
        ready = [devices[0].assign() for _ in range(count)]
        steps = [
            lambda device=device: device.contribute(ready.pop(), body, encoding)
            for device in devices
        ]
        return measure(server, steps, count)

    return run


def sessions(server: Server, devices: Sequence[Device], body: bytes) -> Callable[[int], Rate]:
    """Return how to measure whole sessions."""

    def session(device: Device) -> None:
        task = device.assign()
        device.report(task)
        device.contribute(task, body)

    steps = [lambda device=device: session(device) for device in devices]
    return lambda count: measure(server, steps, count)


def posts(
    server: Server, connections: Sequence[Connection], path: str, body: bytes, each: int
) -> Callable[[int], Rate]:
    """Return how to measure pieces of *each* requests of the bare server."""

    def step(connection: Connection) -> None:
        for _ in range(each):
            connection.post(path, body)

    steps = [lambda connection=connection: step(connection) for connection in connections]
    return lambda count: measure(server, steps, count)


def decompressions(packed: bytes, size: int) -> Callable[[int], Rate]:
    """Return how to measure the fastest decompressor there is, in this thread."""
    try:
        module = importlib.import_module("isal.isal_zlib")
    except ImportError:
        module = zlib

    def run(count: int) -> Rate:
        start, cpu = time.perf_counter(), time.thread_time()
        for _ in range(count):
            # It knows how much comes out: what it would do to find out is no decompression.
            assert len(module.decompress(packed, wbits=31, bufsize=size)) == size
        return Rate(count, time.perf_counter() - start, time.thread_time() - cpu)

    return run


def noise(elements: int) -> tuple[bytes, bytes]:
    """Return an update as devices send them, noise, which hardly shrinks, in two forms.

    The first is a checkpoint; the second is as long and begins with the floats, aligned.
    """
    update = np.random.default_rng(1).standard_normal(elements).astype(np.float32) * 0.01
    checkpoint = write_checkpoint({"update": update}, "federated_compute")
    return checkpoint, update.tobytes().ljust(len(checkpoint), b"\0")


def show(title: str, connections: int, found: Comparison, limit: str) -> None:
    """Print one comparison."""
    print(
        f"{title}, {connections:2d} connections: fcp {found.ours}   {limit} {found.limit}"
        f"   rate x{found.ratio:.2f}   CPU x{found.ours.cpu_ms / found.limit.cpu_ms:.2f}",
        flush=True,
    )


def compare(quick: bool) -> list[Goal]:
    """Compare with bare Tornado and the decompressor."""
    goals = []
    turns = 5 if quick else 9
    body, plain = noise(ELEMENTS)
    small, _ = noise(1)
    packed = gzip.compress(body, 1)
    for elements, size in ((ELEMENTS, 24 if quick else 48), (1, 100 if quick else 200)):
        with ExitStack() as stack:
            fcp = stack.enter_context(running("fcp", elements))
            bare = stack.enter_context(running("bare", elements))
            for number in CONNECTIONS:
                devices = [Device(fcp.url) for _ in range(number)]
                connections = [Connection(bare.url) for _ in range(number)]
                where = f"{number} connection{'s' if number > 1 else ''}"
                if elements == 1:
                    found = in_turns(
                        sessions(fcp, devices, small),
                        posts(bare, connections, "/empty", b"", REQUESTS_A_SESSION),
                        size,
                        turns,
                    )
                    show("sessions", number, found, "bare Tornado")
                    what = f"sessions, 4 B updates, {where}, vs bare Tornado's empty POSTs"
                    goals.append(Goal("ingest", what, found.ratio, 0.75, at_most=False))
                else:
                    found = in_turns(
                        uploads(fcp, devices, body),
                        posts(bare, connections, "/upload", plain, 1),
                        size,
                        turns,
                    )
                    show("4 MB", number, found, "bare Tornado")
                    what = f"contributions of 4 MB, {where}, vs bare Tornado that adds them"
                    goals.append(Goal("ingest", what, found.ratio, 0.8, at_most=False))
                    found = in_turns(
                        uploads(fcp, devices, packed, "gzip"),
                        decompressions(packed, len(body)),
                        # Enough that the two ends of a turn, when few are under way, weigh little.
                        size + size // 3,
                        turns,
                    )
                    show("4 MB gzip", number, found, "decompressor")
                    what = f"gzip contributions of 4 MB, {where}, vs the decompressor alone"
                    goals.append(Goal("ingest", what, found.ratio, 0.9, at_most=False))
                for client in [*(device.connection for device in devices), *connections]:
                    client.close()
    return goals


def idle(quick: bool) -> list[Goal]:
    """Measure what a device costs that gets nothing."""
    goals = []
    with running("fcp", 1) as server:
        Device(server.url, "q").assign()
        for population, why in (("nothing", "no task is open"), ("q", "the task is full")):
            device = Device(server.url, population)
            measure(server, [device.come_in_vain], 200)
            found = measure(server, [device.come_in_vain], 1500 if quick else 4000)
            print(f"check-in when {why}: {found}", flush=True)
            what = f"server CPU for a device that gets nothing because {why}"
            goals.append(Goal("idle", what, found.cpu_ms, 0.5, "ms"))
            device.connection.close()
    return goals


def goals(quick: bool) -> list[Goal]:
    """Measure everything.

    :param quick: fewer turns.
    """
    return [*compare(quick), *idle(quick)]


if __name__ == "__main__":
    main(goals, __doc__)
