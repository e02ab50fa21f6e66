"""The devices and the programs of a run."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.crashing.faults import SPAN
from benchmarks.crashing.member import POPULATIONS
from benchmarks.crashing.releases import AGGREGATOR
from benchmarks.crashing.virtual import LostError
from benchmarks.crashing.world import World
from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client.asynchronous import drive
from fcp_core.client.eligibility import Eligibility
from fcp_core.client.protocols import PlanResults
from fcp_core.client.results import TaskOutcome
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, device_session
from fcp_core.client.steps import Compute, Computed, Evaluate, Reply, Request, SessionStep, Sleep
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskSpec, TaskState, TaskStatus
from fcp_core.server.services.stored_whole import FAN_IN

#: How many contributions a run may have: each has a place of its own in the sum.
PLACES = 1024
#: How often a call is sent, as published clients do.
ATTEMPTS = 4
#: What no device of a run should hear: published clients stay away for hours then.
_SENT_AWAY = (Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.INTERNAL)
#: What is sent again by somebody who kept a session's tokens.
_REPLAYED = ("StartAggregationDataUpload", "upload", "SubmitAggregationResult")


def _column(name: str) -> tuple[TensorSpec]:
    return (TensorSpec(name, DataType.INT64, (-1,)),)


def spec(
    population: str,
    name: str,
    goal: int,
    deadline: float,
    *,
    noisy: bool = False,
    growing: bool = False,
) -> TaskSpec:
    """Return a task whose result says, for each contribution, how often it is in it.

    :param noisy: whether it has noise, which changes no count and shows in a number of its own.
    :param growing: whether its aggregate becomes larger with each contribution.
    """
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("v", DataType.INT64, (PLACES,)),),
        (TensorSpec("sum", DataType.INT64, (PLACES,)),),
    )
    if growing:
        counts = Intrinsic("GoogleSQL:sum", _column("count"), _column("counts"))
        intrinsic = Intrinsic(
            "fedsql_group_by", _column("place"), _column("places"), nested=(counts,)
        )
    noise = Intrinsic(
        "federated_sum",
        (TensorSpec("w", DataType.DOUBLE),),
        (TensorSpec("noise", DataType.DOUBLE),),
    )
    return TaskSpec(
        population=population,
        name=name,
        plan=b"plan",
        checkpoint=b"checkpoint",
        aggregation=configuration_to_proto([intrinsic, noise]).SerializeToString(),
        aggregators={"federated_sum": AGGREGATOR} if noisy else {},
        goal_count=goal,
        deadline=deadline,
        durability="contribution",
    )


def checkpoint(place: int) -> bytes:
    """Return what a device contributes."""
    values = np.zeros(PLACES, np.int64)
    values[place] = 1
    grouped = {"place": np.array([place]), "count": np.array([1])}
    return write_checkpoint({"v": values, "w": np.zeros(()), **grouped}, "federated_compute")


@dataclass
class Contribution:
    """One contribution, as its device knows of it.

    :param aggregation_id: of the assignment's task.
    :param twin: another one with the same tokens, of which at most one may count.
    :param ok: whether the device was told so; None: it never heard.
    """

    aggregation_id: str
    twin: int | None = None
    ok: bool | None = None


@dataclass
class Ended:
    """What a program saw of a task's end."""

    status: TaskStatus
    result: bytes | None


@dataclass
class Accounts:
    """What everybody outside knows."""

    contributions: list[Contribution] = field(default_factory=list)
    ended: dict[str, Ended] = field(default_factory=dict)
    #: What devices heard that they should not.
    sent_away: set[str] = field(default_factory=set)
    #: The tasks that were submitted, by key.
    submitted: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether there is no place for more."""
        return len(self.contributions) >= PLACES - 1

    def place(self, aggregation_id: str, twin: int | None = None) -> int:
        """Return the place of a new contribution."""
        self.contributions.append(Contribution(aggregation_id, twin))
        return len(self.contributions) - 1


class Device:
    """One device: session after session, with the client's own machine."""

    def __init__(self, world: World, accounts: Accounts, seed: int) -> None:
        self._world, self._accounts = world, accounts
        self._rng = random.Random(seed)
        self._population = self._rng.choice(POPULATIONS)
        self._sent: list[Request] = []
        self._place: int | None = None

    async def run(self) -> None:
        """Go on for ever."""
        while not self._accounts.full:
            # Those who are still there long after are patient: time is to pass quickly then.
            most = 15.0 if self._world.loop.time() < 2 * SPAN else 120.0
            await asyncio.sleep(self._rng.uniform(0.1, most))
            if self._world.members[0] is None and all(m is None for m in self._world.members):
                continue
            patience = self._rng.uniform(0.05, 3.0) if self._rng.random() < 0.15 else 600.0
            self._sent, self._place = [], None
            with contextlib.suppress(LostError, StatusError, asyncio.TimeoutError):
                await asyncio.wait_for(self._session(), patience)
            if self._place is not None and self._rng.random() < 0.2:
                await self._replay(self._place)

    async def _session(self) -> None:
        settings = DeviceSettings(
            "http://localhost:1000/", self._population, client_version="1", encode=None
        )
        schedule = RetrySchedule(self._world.loop.time, self._rng)
        end = await drive(device_session(settings, schedule), self._perform)
        if self._place is not None:
            told = [task.outcome for task in end.tasks]
            ok = bool(told) and told[-1] is TaskOutcome.CONTRIBUTED
            self._accounts.contributions[self._place].ok = ok

    async def _perform(self, step: SessionStep) -> Any:
        if isinstance(step, Request):
            return await self._request(step)
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
        if isinstance(step, Evaluate):
            return Eligibility(None, multiple_tasks=(), may_start=True)
        if isinstance(step, Compute):
            await asyncio.sleep(self._rng.uniform(0.1, 5.0))
            self._place = self._accounts.place(step.assignment.aggregation_id)
            return Computed(PlanResults(checkpoint(self._place)))
        return None

    async def _request(self, request: Request, *, honest: bool = True) -> Reply:
        if request.name.rpartition(".")[2] in _REPLAYED:
            self._sent.append(request)
        for attempt in range(ATTEMPTS):
            try:
                return await self._world.deliver(request)
            except LostError:
                pass
            except StatusError as error:
                if honest and error.code in _SENT_AWAY and request.name != "download":
                    self._accounts.sent_away.add(f"{request.name}: {error.code.name}: {error}")
                if error.code is not Code.UNAVAILABLE or attempt == ATTEMPTS - 1:
                    raise
            await asyncio.sleep(self._rng.uniform(0.1, 2.0) * (attempt + 1))
        raise StatusError(Code.UNAVAILABLE, "there was no answer")

    async def _replay(self, place: int) -> None:
        """Use the tokens of a session again, with other bytes."""
        if self._accounts.full:
            return
        known = self._accounts.contributions[place]
        twin = self._accounts.place(known.aggregation_id, place)
        await asyncio.sleep(self._rng.uniform(0.0, 20.0))
        for request in [*self._sent]:
            if request.name == "upload":
                request = replace(request, data=checkpoint(twin))
            try:
                await self._request(request, honest=False)
            except StatusError:
                continue


class Program:
    """Submits a population's tasks one after another, and waits for each."""

    def __init__(self, world: World, accounts: Accounts, population: str, tasks: int) -> None:
        self._world, self._accounts = world, accounts
        self._population = population
        self._rng = random.Random(f"{world.plan.seed}/{population}")
        self._tasks = tasks

    async def run(self) -> None:
        """Return when all tasks have ended."""
        for number in range(self._tasks):
            await asyncio.sleep(self._rng.uniform(0.0, 10.0))
            wanted = spec(
                self._population,
                f"task_{number}",
                # Some have more than one total's worth of shards.
                self._rng.randint(*self._rng.choice(((1, 20), (FAN_IN + 1, 3 * FAN_IN)))),
                self._rng.choice((60.0, 600.0)),
                noisy=bool(self._world.plan.releases),
                growing=not self._world.plan.releases and self._rng.random() < 0.5,
            )
            key = f"{self._population}/{number}"
            task_id = await self._until_answered(wanted, key)
            known = self._accounts.submitted.setdefault(key, task_id)
            assert known == task_id
            self._accounts.ended[task_id] = await self._end(task_id)

    async def _until_answered(self, wanted: TaskSpec, key: str) -> str:
        async def submit(services: Any) -> str:
            if services.members is not None:
                await services.members.claim(wanted.population)
            found: str = await services.tasks.submit(wanted, key=key)
            return found

        while True:
            found = await self._ask(submit)
            if found is not None:
                return str(found)

    async def _end(self, task_id: str) -> Ended:
        while True:
            ended = await self._ask(lambda services: ended_of(services, task_id))
            if ended is not None and ended.status.state in _FINAL:
                return ended  # type: ignore[no-any-return]
            await asyncio.sleep(self._rng.uniform(0.2, 3.0))

    async def _ask(self, work: Any) -> Any:
        try:
            return await self._world.at_owner(self._population, work)
        except LostError:
            pass
        except StatusError as error:
            if error.code is Code.INVALID_ARGUMENT:
                raise
        await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        return None


_FINAL = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


async def ended_of(services: Any, task_id: str) -> Ended:
    """Return where a task stands, and its result if it has one."""
    status = await services.tasks.status(task_id)
    result = None
    if status.state is TaskState.COMPLETED:
        result = await services.tasks.wait(task_id)
    return Ended(status, result)


def places(result: bytes) -> Mapping[int, int]:
    """Return how often each contribution is in a result."""
    found = open_checkpoint(result)
    if "places" in found:
        places, counts = (found[name].tolist() for name in ("places", "counts"))
        return dict(zip(places, counts, strict=True))
    values = found["sum"]
    return {int(place): int(values[place]) for place in np.flatnonzero(values)}
