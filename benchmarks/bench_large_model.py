"""What a model of 190 MiB costs the server: stalls of its event loop, and memory.

A server runs in a process of its own, with its tasks in a file as is the default. A task with a
model of 190 MiB is submitted over the admin API, three devices download it and contribute as much
at the same time, and the result is fetched. A stall is how late a timer of 5 ms was in the server's
event loop at most; memory is the most that was resident, less what the idle server had, as a
multiple of the model.

That is done for a sum and for a weighted mean, in both formats of checkpoints, plain and gzipped,
and for a sum of 64-bit integers, plain in one format and gzipped in the other. Of all but the
first, the worst of the contributions and the result is told.

    python benchmarks/bench_large_model.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from goals import Goal
from http_load import Device

from fcp_core.admin.client import AdminClient
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import CheckpointFormat
from fcp_core.aggregation.spec import DataType, Intrinsic, Tensor, TensorSpec
from fcp_core.bench.server import memory_of
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.rounds.tasks import TaskSpec

MODEL = 190 << 20
QUICK_MODEL = 32 << 20
DEVICES = 3
#: The longest stall that is allowed, in milliseconds.
STALL_MS = 250
#: The most memory that is allowed, in models.
MODELS = 2.0
#: At a start the stored aggregate is read while its sums are made of it.
START_MODELS = 2.25
TOKEN = secrets.token_hex()
#: How often the loop is looked at, in seconds.
EVERY = 0.005


# The server.


class Watch:
    """Looks how late the event loop is."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._due = 0.0

    def begin(self) -> None:
        """Look from now on."""
        self._due = asyncio.get_running_loop().time() + EVERY
        asyncio.get_running_loop().call_at(self._due, self._look)

    def _look(self) -> None:
        self.longest = max(self.longest, asyncio.get_running_loop().time() - self._due)
        self.begin()


def serve(storage: str, token: str) -> None:
    """Serve, and say after each line of the input how long the longest stall was since the last."""
    from fcp_core.plugins.manager import Plugins
    from fcp_core.server import Server

    settings = {"storage.sqlite.path": storage, "storage": "sqlite", "admin.token": token}

    async def main() -> None:
        server = Server(Plugins.load(environ={}, overrides=settings))
        await server.start()
        watch = Watch()
        watch.begin()
        print(server.url, flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(watch.longest), flush=True)
            watch.longest = 0.0
        await server.stop()

    asyncio.run(main())


class Measured:
    """A server in a process of its own.

    :ivar stalls: the longest stall of each part, in milliseconds.
    :ivar memory: the most memory in each part, in bytes.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self.url = url
        self.idle, _ = memory_of(process.pid)
        self.stalls: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what is done meanwhile."""
        self._ask()
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # begins a new maximum
        yield
        self.stalls[name] = 1000 * self._ask()
        now, self.memory[name] = memory_of(self._process.pid)
        print(
            f"{name}: stall {self.stalls[name]:.0f} ms, memory "
            f"{self.memory[name]:.0f} MB at most, {now:.0f} MB afterwards, {self.idle:.0f} MB idle",
            file=sys.stderr,
        )

    def resident(self) -> tuple[float, float]:
        """Return the memory that it has, and the most that it had, in MB."""
        return memory_of(self._process.pid)

    def _ask(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


@contextmanager
def running(folder: Path | None = None) -> Iterator[Measured]:
    """Run a server.

    :param folder: where its tasks are; None: in one that goes with it.
    """
    with ExitStack() as stack:
        own = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, __file__, "--serve", str(own / "tasks.sqlite"), TOKEN]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        yield Measured(process, process.stdout.readline().strip())
        process.stdin.close()


# The devices.


@dataclass(frozen=True)
class Form:
    """What the devices of a round contribute, and how.

    :param checkpoint_format: of what they upload.
    :param mean: whether it is for a weighted mean, and not for a sum.
    :param compressed: whether it is gzipped.
    :param integers: whether the numbers are int64, and not float32.
    """

    checkpoint_format: CheckpointFormat
    mean: bool
    compressed: bool
    integers: bool = False

    def __str__(self) -> str:
        what = "weighted mean" if self.mean else "int64 sum" if self.integers else "sum"
        return f"{what}, {self.checkpoint_format}{', gzip' if self.compressed else ''}"

    def configuration(self, elements: int) -> bytes:
        """Return what a task with so many numbers asks for."""
        dtype = DataType.INT64 if self.integers else DataType.FLOAT
        inputs = [TensorSpec("update", dtype, (elements,))]
        if self.mean:
            inputs.append(TensorSpec("weight", DataType.FLOAT))
        uri = "federated_weighted_mean" if self.mean else "federated_sum"
        total = TensorSpec("total", dtype, (elements,))
        intrinsic = Intrinsic(uri, inputs=tuple(inputs), outputs=(total,))
        return configuration_to_proto([intrinsic]).SerializeToString()

    def numbers(self, size: int) -> Tensor:
        """Return what the model and each update hold, of *size* bytes."""
        rng = np.random.default_rng(0)
        if self.integers:
            return rng.integers(-(1 << 40), 1 << 40, size // 8)
        return rng.standard_normal(size // 4, np.float32)

    def body(self, update: Tensor) -> bytes:
        """Return what a device sends."""
        tensors = {"update": update}
        if self.mean:
            tensors["weight"] = np.array(DEVICES, np.float32)
        body = write_checkpoint(tensors, self.checkpoint_format)
        return gzip.compress(body, 1) if self.compressed else body

    def is_result(self, result: bytes, update: Tensor) -> bool:
        """Whether that is the result if all devices contribute the same."""
        expected = update if self.mean else update * update.dtype.type(DEVICES)
        close = 0.0 if self.integers else 1e-5
        return bool(np.allclose(open_checkpoint(result)["total"], expected, rtol=close))


FORMS = [
    Form(checkpoint_format, mean, compressed)
    for checkpoint_format in ("federated_compute", "tf_v1")
    for mean in (False, True)
    for compressed in (False, True)
]
FORMS += [
    Form("federated_compute", mean=False, compressed=False, integers=True),
    Form("tf_v1", mean=False, compressed=True, integers=True),
]


def download(url: str) -> int:
    """Fetch a resource and drop it; return how many bytes there were."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        buffer, size = bytearray(1 << 20), 0
        while more := connection.recv_into(buffer):
            if not size and not buffer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(bytes(buffer[:more]).decode(errors="replace"))
            size += more
        return size


def together(function: Callable[[int], object]) -> None:
    """Do something for each device at the same time."""
    with ThreadPoolExecutor(DEVICES) as pool:
        for future in [pool.submit(function, number) for number in range(DEVICES)]:
            future.result()


def measure(form: Form, size: int) -> Measured:
    """Run one round with a model of *size* bytes."""
    numbers = form.numbers(size)
    body = form.body(numbers)
    spec = TaskSpec(
        "p",
        "large",
        b"plan",
        form.configuration(numbers.size),
        DEVICES,
        over_selection=1.0,
        checkpoint=write_checkpoint({"model": numbers}, "tf_v1"),
        deadline=600.0,
        result_format="federated_compute",
    )
    encoding = "gzip" if form.compressed else ""
    print(form, file=sys.stderr)
    with running() as server, AdminClient(server.url, TOKEN) as admin:
        with server.part("submission"):
            task_id = admin.submit(spec).task_id
        del spec
        devices = [Device(server.url) for _ in range(DEVICES)]
        with server.part("downloads"):
            tasks = [device.assign() for device in devices]
            together(lambda number: download(tasks[number].init_checkpoint.uri))
        with server.part("contributions"):
            together(lambda number: devices[number].contribute(tasks[number], body, encoding))
        with server.part("result"):
            admin.wait(task_id)
            result = admin.result(task_id)
        if not form.is_result(result, numbers):
            raise RuntimeError(f"the result is not the {form}")
    return server


def start_again(size: int) -> float:
    """Return the most memory of a start with an open task that has contributions, in models."""
    form = FORMS[0]
    numbers = form.numbers(size)
    model = write_checkpoint({"model": numbers}, "tf_v1")
    spec = TaskSpec(
        "p", "large", b"plan", form.configuration(numbers.size), DEVICES, checkpoint=model
    )
    with tempfile.TemporaryDirectory() as folder:
        with running(Path(folder)) as server:
            idle = server.idle
            with AdminClient(server.url, TOKEN) as admin:
                admin.submit(spec)
            device = Device(server.url)
            device.contribute(device.assign(), form.body(numbers))
            device.connection.close()
        with running(Path(folder)) as server:
            _, most = server.resident()
    return (most - idle) * 1e6 / size


def goals(quick: bool) -> list[Goal]:
    """Measure."""
    size = QUICK_MODEL if quick else MODEL
    what = f"a model of {size >> 20} MiB and {DEVICES} devices"
    found = []
    for form in FORMS:
        server = measure(form, size)
        models = {
            name: (memory - server.idle) * 1e6 / size for name, memory in server.memory.items()
        }
        stalls: Mapping[str, float] = server.stalls
        if form != FORMS[0]:
            worst = [max(each["contributions"], each["result"]) for each in (stalls, models)]
            stalls, models = {str(form): worst[0]}, {str(form): worst[1]}
        for name, stall in stalls.items():
            found.append(Goal("large", f"longest stall, {what}: {name}", stall, STALL_MS, "ms"))
        for name, memory in models.items():
            name = f"memory above idle, {what}: {name}"
            found.append(Goal("large", name, memory, MODELS, "models"))
    name = f"memory above idle, {what}: start with an open task"
    found.append(Goal("large", name, start_again(size), START_MODELS, "models"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve is not None:
        serve(*given.serve)
        return
    for goal in goals(given.quick):
        print("  ".join(goal.row()))


if __name__ == "__main__":
    main()
