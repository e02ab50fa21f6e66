"""A fuzzing run: a server in this process, inputs, and an honest round that goes on meanwhile."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from benchmarks.fuzzing.hostile import Hostile
from benchmarks.fuzzing.inputs import Fuzzer, Known
from benchmarks.fuzzing.phone import Phone
from benchmarks.fuzzing.transport import Direct, Request, send_raw
from benchmarks.fuzzing.watch import Watch, memory
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec, TaskState
from fcp_core.server import Server

#: Statuses that a server may well answer with: the protocol's own, and 501 for a service that this
#: server does not offer. Any other from 500 on is a fault.
ALLOWED = frozenset({501})

#: Requests between two devices that do as they should, and how often the clock moves.
_DEVICE_EVERY = 25
_HOUR_EVERY = 20_000
#: Which part of the inputs are bombs: each takes as long as many others.
_BOMBS = 0.003

#: The most memory that a run may take above what it had after its first tenth, in bytes.
MAX_PEAK = 64 << 20
#: The longest that the loop may stand, in seconds.
MAX_STALL = 0.25


@dataclass
class Report:
    """What a run found.

    :param statuses: how often each status was answered.
    :param faults: the inputs that were answered with a status of 500 or more, but 501; a few.
    :param growth: how much more memory the process had at the end than after the first tenth, in
        bytes; *peak* is the most it had over that at any look.
    :param bombs: how many of the inputs were bombs of size.
    :param stall: the longest time for which the loop stood, in seconds.
    :param honest: how many devices the honest round had, and whether its sum was right.
    """

    inputs: int = 0
    over_sockets: int = 0
    bombs: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[int, Request | bytes]] = field(default_factory=list)
    growth: int = 0
    peak: int = 0
    stall: float = 0.0
    honest: int = 0
    honest_right: bool = False
    logged: list[str] = field(default_factory=list)

    @property
    def fault_count(self) -> int:
        """How many answers were faults."""
        return sum(n for status, n in self.statuses.items() if _is_fault(status))

    @property
    def good(self) -> bool:
        """Whether nothing was wrong, memory and stalls aside."""
        return not self.fault_count and not self.logged and self.honest_right

    @property
    def bounded(self) -> bool:
        """Whether memory and stalls kept within their bounds."""
        return self.peak <= MAX_PEAK and self.stall <= MAX_STALL


class _Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        if len(self.lines) < 20:
            self.lines.append(self.format(record))


async def fuzz(inputs: int, seed: int, *, socket_share: float = 0.02, honest: int = 40) -> Report:
    """Give a server that many inputs.

    :param socket_share: which part of them goes over sockets, as bytes.
    :param honest: how many devices contribute to the round that is checked.
    """
    rng = random.Random(seed)
    clock = ManualClock()
    overrides = {"assignment_timeout": "1h", "task_deadline": "1000d"}
    server = Server(Plugins.load(environ={}, overrides=overrides), clock=clock, rng=rng)
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    await server.start()
    try:
        run = _Run(server, clock, rng, honest)
        await run.prepare()
        await run.play(inputs, socket_share)
        run.report.logged = errors.lines
        return run.report
    finally:
        await server.stop()
        logging.getLogger().removeHandler(errors)


class _Run:
    def __init__(self, server: Server, clock: ManualClock, rng: random.Random, honest: int) -> None:
        self.report = Report(honest=honest)
        self._server = server
        self._clock = clock
        self._rng = rng
        self._honest = honest
        self._known = Known()
        self._fuzzer = Fuzzer(rng, self._known, make_checkpoint(1))
        self._hostile = Hostile(rng)
        http = server._frontend._http
        assert http is not None  # the server runs
        self._direct = Direct(http)

    async def prepare(self) -> None:
        """Open the round that is fuzzed and the one that must not mind."""
        tasks = self._server.services.tasks
        self._fuzzed = await tasks.submit(make_task("fuzzed", 10**9))
        await ask(self._server, "fuzzed")
        self._checked = await tasks.submit(make_task("honest", self._honest))
        self._known.add("populations", "fuzzed")

    async def play(self, inputs: int, socket_share: float) -> None:
        """Send everything, check what the honest round made, and measure."""
        report, rng = self.report, self._rng
        began = time.perf_counter()
        watch = Watch()
        devices = iter(range(self._honest))
        for number in range(inputs):
            if number % _DEVICE_EVERY == 0:
                phone = Phone(self._direct.send, "fuzzed", make_checkpoint(1), self._known)
                await phone.session(rng.randrange(1, 6))
            if number % max(1, inputs // self._honest) == 0:
                await self._contribute(next(devices, None))
            if number % _HOUR_EVERY == _HOUR_EVERY - 1:
                self._clock.advance(3700.0)  # sessions expire and go
                self._server.services.ticker.run_due()
            if number == inputs // 10:
                watch.begin()
            await self._send(socket_share)
            report.inputs += 1
        for device in devices:
            await self._contribute(device)
        watch.end()
        report.stall = watch.stall
        report.peak, report.growth = watch.peak - watch.base, memory() - watch.base
        report.seconds = time.perf_counter() - began
        report.honest_right = await self._check()

    async def _send(self, socket_share: float) -> None:
        rng = self._rng
        if rng.random() < _BOMBS:
            self.report.bombs += 1
            request, data = self._hostile.bomb()
        else:
            request, data = self._fuzzer.request(), None
            if rng.random() < socket_share:
                doubtful = rng.random() < 0.5
                data = self._hostile.raw() if doubtful else self._fuzzer.spoil_raw(request)
        if data is None:
            answer = await self._direct.send(request, rng.randrange(1, 4))
            self._count(answer.status, request)
            return
        self.report.over_sockets += 1
        statuses = await send_raw(self._server.port, data)
        # Each request has a line with its version; what has none is answered once.
        if len(statuses) > data.count(b"HTTP/1.") + 1:
            self._count(0, data)
        for status in statuses:
            self._count(status, data)

    def _count(self, status: int, sent: Request | bytes) -> None:
        self.report.statuses[status] += 1
        if _is_fault(status) and len(self.report.faults) < 10:
            self.report.faults.append((status, sent))

    async def _contribute(self, device: int | None) -> None:
        if device is not None:
            phone = Phone(self._direct.send, "honest", make_checkpoint(1 << device))
            if not await phone.session():
                self.report.logged.append(f"honest device {device} could not contribute")

    async def _check(self) -> bool:
        tasks = self._server.services.tasks
        status = await tasks.status(self._checked)
        if status.contributed != self._honest:
            return False
        result = open_checkpoint(await asyncio.wait_for(tasks.wait(self._checked), 60))
        still = (await tasks.status(self._fuzzed)).state is TaskState.OPEN
        return still and result["total"].tolist() == [(1 << self._honest) - 1]


def _is_fault(status: int) -> bool:
    return status == 0 or (status >= 500 and status not in ALLOWED)


def make_checkpoint(value: int) -> bytes:
    """Return a contribution to the tasks of a run."""
    return write_checkpoint({"update": np.array([value], np.int64)}, "federated_compute")


def make_task(population: str, goal: int) -> TaskSpec:
    """Return a task that sums numbers."""
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("update", DataType.INT64, (1,)),),
        (TensorSpec("total", DataType.INT64, (1,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()
    return TaskSpec(population, "sum", b"plan", configuration, goal, checkpoint=b"checkpoint")


async def ask(server: Server, population: str) -> None:
    """Have a population's devices asked about tasks beside the one that anybody may take."""
    plan = plan_pb2.ClientOnlyPlan()
    plan.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    await server.services.eligibility_tasks.set(
        population,
        EligibilityTask(
            plan.SerializeToString(),
            b"input",
            task_names=["weighed"],
            policies=[PolicyChoice("minimum_separation", task_names=["separated"])],
        ),
    )
    for name, mode in (("weighed", AssignmentMode.SINGLE), ("separated", AssignmentMode.MULTIPLE)):
        task = make_task(population, 10**9).replace(name=name, assignment_mode=mode)
        await server.services.tasks.submit(task)


__all__ = ["ALLOWED", "Report", "fuzz", "make_checkpoint", "make_task"]
