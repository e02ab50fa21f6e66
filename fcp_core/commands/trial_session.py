"""Runs one task with one device session in this process, to see what plugins do with it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.local import LocalEngine
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client.asynchronous import drive
from fcp_core.client.eligibility import Eligibility
from fcp_core.client.protocols import PlanResults
from fcp_core.client.results import Outcome
from fcp_core.client.retry import RetrySchedule
from fcp_core.client.session import DeviceSettings, device_session
from fcp_core.client.steps import Compute, Computed, Evaluate, Reply, Request, SessionStep, Sleep
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.services import Services

#: The name of the task.
TASK = "trial"
#: Seconds of the session's own time after which the device stops waiting.
PATIENCE = 3600

_URL = "http://localhost:80/"
#: What is said when the device makes a call.
_LINES = {
    "EligibilityEvalTasks.RequestEligibilityEvalTask": "a device checks in",
    "TaskAssignments.StartTaskAssignment": "the device asks for a task",
    "Aggregations.StartAggregationDataUpload": "the device contributes",
}


async def run_trial_session(
    plugins: Plugins, population: str, tell: Callable[[str], object]
) -> None:
    """Start the plugins, run one task with one device, and shut the plugins down.

    The plugins' start-up hooks really run. Nothing is listened on, the storage is a fresh one in
    memory, and time is the session's own.

    :param tell: called with a line for each stage.
    :raises UsageError: if a plugin cannot start.
    :raises StatusError: if the task or one of the device's calls is refused.
    """
    if "memory" not in plugins.storages:
        raise UsageError(
            "a trial session needs the storage 'memory', which no active plugin offers."
        )
    clock = ManualClock(time.time())
    tell("start-up")
    await plugins.startup()
    try:
        services = Services(
            plugins,
            populations=(population,),
            base_url=_URL,
            clock=clock,
            storage=plugins.storages["memory"].make({}),
            engine=LocalEngine(plugins.aggregators, workers=0),
        )
        await services.start()
        try:
            await _Device(plugins, services, clock, population, tell).run()
        finally:
            await services.stop()
    finally:
        tell("shutdown")
        await plugins.shutdown()


class _Device:
    """Carries out one device's session on the services, without HTTP."""

    def __init__(
        self,
        plugins: Plugins,
        services: Services,
        clock: ManualClock,
        population: str,
        tell: Callable[[str], object],
    ) -> None:
        self._plugins = plugins
        self._services = services
        self._clock = clock
        self._population = population
        self._tell = tell
        self._principal: str | None = None
        self._waited = 0.0
        self._said = ""

    async def run(self) -> None:
        """Submit a task, then do what a device does."""
        self._tell("a task is submitted")
        task = await self._services.tasks.submit(_task(self._population))
        self._principal = self._plugins.authenticate(
            "POST", f"/v1/eligibilityevaltasks/{self._population}:request", {}, "127.0.0.1"
        )
        settings = DeviceSettings(_URL, self._population, client_version="1", encode=None)
        schedule = RetrySchedule(self._clock.now, random.Random(0))
        end = await drive(device_session(settings, schedule), self._perform)
        if end.outcome is Outcome.CONTRIBUTED:
            await self._services.tasks.wait(task)
        elif end.outcome in (Outcome.REJECTED, Outcome.NO_TASK):
            asked = self._said == _LINES["TaskAssignments.StartTaskAssignment"]
            self._tell(
                "the device is sent away without a task"
                if asked
                else "the device is sent away at check-in"
            )
        elif self._waited >= PATIENCE:
            self._tell(f"after {PATIENCE} seconds of its own time, the device gives up waiting")
        else:
            raise end.error or next(task.error for task in end.tasks if task.error is not None)

    async def _perform(self, step: SessionStep) -> Any:
        if isinstance(step, Request):
            return await self._answer(step)
        if isinstance(step, Sleep):
            return self._pass(step.seconds)
        if isinstance(step, Evaluate):
            # It is eligible, whatever the policies ask.
            return Eligibility({TASK: 1.0}, multiple_tasks=(), may_start=True)
        if isinstance(step, Compute):
            checkpoint = write_checkpoint({"value": np.array(1, np.int64)}, "tf_v1")
            return Computed(PlanResults(checkpoint))
        return None

    def _pass(self, seconds: float) -> None:
        """Let the trial's own time pass.

        :raises StatusError: CANCELLED after the device's patience.
        """
        if self._waited >= PATIENCE:
            raise StatusError(Code.CANCELLED, "the device has waited long enough")
        if seconds:
            self._waited += max(1.0, seconds)
            self._clock.advance(max(1.0, seconds))
            self._services.ticker.run_due()

    async def _answer(self, request: Request) -> Reply:
        if request.name in _LINES:
            self._said = _LINES[request.name]
            self._tell(self._said)
        if request.name == "upload":
            name = request.message.resource_name
            await self._services.media.begin_upload(name, self._principal)
            await self._services.media.finish_upload(name, request.data, self._principal)
            return Reply(b"")
        if request.message is None:
            found = await self._services.media.download(request.url.partition("/data/")[2])
            return Reply(bytes(found.data), found.content_type)
        serve = self._services.method(routes.named(request.name))
        assert serve is not None  # a device calls what the server told it of
        return Reply((await serve(request.message, self._principal)).SerializeToString())


def _task(population: str) -> TaskSpec:
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("value", DataType.INT64),),
        (TensorSpec("sum", DataType.INT64),),
    )
    return TaskSpec(
        population=population,
        name=TASK,
        plan=b"",
        aggregation=configuration_to_proto([intrinsic]).SerializeToString(),
        goal_count=1,
        protocol="simple",
    )
