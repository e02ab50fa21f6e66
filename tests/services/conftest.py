"""A server without HTTP, with devices that are coroutines."""

from __future__ import annotations

import asyncio
import gzip
import random
import signal
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import (
    aggregations_pb2,
    common_pb2,
    eligibility_eval_tasks_pb2,
    google_longrunning_operations_pb2,
    population_eligibility_spec_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.services import Services

POPULATION = "phones/all"
URL = "https://fcp.example/"
INPUT, OUTPUT = "update/0", "intermediate_update/0/0"
#: Devices add their own power of two, so that a sum tells who is in it, and how often.
SHAPE = (2,)


def sum_configuration() -> bytes:
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec(INPUT, DataType.INT64, SHAPE),),
        (TensorSpec(OUTPUT, DataType.INT64, SHAPE),),
    )
    return configuration_to_proto([intrinsic]).SerializeToString()


async def call(services, method, request, sender=None):
    """Call a method of the aggregation protocol, as HTTP would."""
    route = routes.route("google.internal.federatedcompute.v1.Aggregations", method)
    return await services.method(route)(request, sender)


@pytest.fixture
def served():
    """Handle SIGINT as ``fcp serve`` does: then no KeyboardInterrupt is the operator's."""
    before = signal.signal(signal.SIGINT, lambda number, frame: pytest.exit("interrupted"))
    yield
    signal.signal(signal.SIGINT, before)


class Recorder:
    """An observer plugin."""

    def __init__(self) -> None:
        self.events = []

    @hookimpl
    def fcp_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if type(event).__name__ == kind]


class World:
    """A server's services, its clock, its events, and ways to make tasks and devices."""

    def __init__(self, services, clock, recorder) -> None:
        self.services = services
        self.clock = clock
        self.recorder = recorder
        self.devices = 0

    @staticmethod
    def spec(goal=1, **kwargs) -> TaskSpec:
        defaults = {
            "population": POPULATION,
            "name": "sum",
            "plan": b"plan",
            "checkpoint": b"checkpoint",
            "aggregation": sum_configuration(),
            "goal_count": goal,
        }
        return TaskSpec(**{**defaults, **kwargs})

    async def submit(self, goal=1, **kwargs) -> str:
        return await self.services.tasks.submit(self.spec(goal, **kwargs))

    def device(self, **kwargs) -> Device:
        self.devices += 1
        return Device(self.services, self.devices - 1, **kwargs)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.services.ticker.run_due()

    async def result(self, task_id: str) -> list[int]:
        data = await asyncio.wait_for(self.services.tasks.wait(task_id), 30)
        return open_checkpoint(data).get_tensor(OUTPUT).tolist()

    async def status(self, task_id: str):
        return await self.services.tasks.status(task_id)


class Device:
    """A device that says what the published client says, in its order."""

    def __init__(
        self, services, number, population=POPULATION, multiple=False, native=True, principal=None
    ) -> None:
        self.services = services
        self.number = number
        self.value = np.array([1 << number, 1], dtype=np.int64)
        self.population = population
        self.multiple = multiple
        self.native = native
        self.principal = principal
        self.session_id = None
        self.tickets = {}

    async def check_in(self):
        response = await self.services.eligibility_eval_tasks.request_eligibility_eval_task(
            eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest(
                population_name=self.population,
                client_version=common_pb2.ClientVersion(version_code="1"),
                resource_capabilities=common_pb2.ResourceCapabilities(
                    supported_compression_formats=[common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP]
                ),
                eligibility_eval_task_capabilities=(
                    eligibility_eval_tasks_pb2.EligibilityEvalTaskCapabilities(
                        supports_multiple_task_assignment=self.multiple,
                        supports_native_eets=self.native,
                    )
                ),
            ),
            self.principal,
        )
        self.session_id = response.session_id
        return response

    @staticmethod
    def spec(response) -> population_eligibility_spec_pb2.PopulationEligibilitySpec:
        resource = response.eligibility_eval_task.population_eligibility_spec
        assert resource.inline_resource.compression_format == 1
        return population_eligibility_spec_pb2.PopulationEligibilitySpec.FromString(
            gzip.decompress(resource.inline_resource.data)
        )

    async def report_eligibility(self, code=Code.OK):
        service = self.services.eligibility_eval_tasks
        return await service.report_eligibility_eval_task_result(
            eligibility_eval_tasks_pb2.ReportEligibilityEvalTaskResultRequest(
                population_name=self.population, session_id=self.session_id, status_code=int(code)
            ),
            self.principal,
        )

    async def start(self, weights=None):
        request = task_assignments_pb2.StartTaskAssignmentRequest(
            population_name=self.population, session_id=self.session_id
        )
        for name, weight in (weights or {}).items():
            request.task_eligibility_info.task_weights.add(task_name=name, weight=weight)
        if weights is not None:
            request.task_eligibility_info.version = 1
        return await self.services.task_assignments.start_task_assignment(request, self.principal)

    async def poll(self, name):
        return await self.services.operations.get_operation(
            google_longrunning_operations_pb2.GetOperationRequest(name=name), self.principal
        )

    async def cancel(self, name):
        return await self.services.operations.cancel_operation(
            google_longrunning_operations_pb2.CancelOperationRequest(name=name), self.principal
        )

    async def ask(self, *names):
        service = self.services.task_assignments
        response = await service.perform_multiple_task_assignments(
            task_assignments_pb2.PerformMultipleTaskAssignmentsRequest(
                population_name=self.population, session_id=self.session_id, task_names=names
            ),
            self.principal,
        )
        return list(response.task_assignments)

    @staticmethod
    def answer(operation) -> task_assignments_pb2.StartTaskAssignmentResponse:
        assert operation.done
        assert operation.response.type_url.startswith("type.googleapis.com/")
        response = task_assignments_pb2.StartTaskAssignmentResponse()
        assert operation.response.Unpack(response)
        return response

    async def assignment(self, weights=None):
        """Check in and return the task; None if there is none."""
        response = await self.check_in()
        if response.WhichOneof("result") == "rejection_info":
            return None
        answer = self.answer(await self.start(weights))
        return answer.task_assignment if answer.HasField("task_assignment") else None

    async def report(self, assignment, code=Code.OK):
        return await self.services.task_assignments.report_task_result(
            task_assignments_pb2.ReportTaskResultRequest(
                population_name=self.population,
                session_id=assignment.session_id,
                aggregation_id=assignment.aggregation_id,
                task_name=assignment.task_name,
                computation_status_code=int(code),
            ),
            self.principal,
        )

    async def start_upload(self, assignment, token=None):
        operation = await call(
            self.services,
            "StartAggregationDataUpload",
            aggregations_pb2.StartAggregationDataUploadRequest(
                aggregation_id=assignment.aggregation_id,
                authorization_token=assignment.authorization_token if token is None else token,
            ),
            self.principal,
        )
        assert operation.done
        response = aggregations_pb2.StartAggregationDataUploadResponse()
        assert operation.response.Unpack(response)
        return response

    async def upload(self, ticket, body=None):
        name = ticket.resource.resource_name
        media = self.services.media
        if await media.begin_upload(name, self.principal):
            body = self.body() if body is None else body
            await media.finish_upload(name, body, self.principal)

    def body(self) -> bytes:
        return write_checkpoint({INPUT: self.value}, "tf_v1")

    async def submit(self, assignment, ticket, resource_name=None):
        name = ticket.resource.resource_name if resource_name is None else resource_name
        return await call(
            self.services,
            "SubmitAggregationResult",
            aggregations_pb2.SubmitAggregationResultRequest(
                aggregation_id=assignment.aggregation_id,
                client_token=ticket.client_token,
                resource_name=name,
            ),
            self.principal,
        )

    async def abort(self, assignment, ticket, code=Code.INTERNAL):
        request = aggregations_pb2.AbortAggregationRequest(
            aggregation_id=assignment.aggregation_id, client_token=ticket.client_token
        )
        request.status.code = int(code)
        return await call(self.services, "AbortAggregation", request, self.principal)

    async def contribute(self, assignment, body=None):
        ticket, _ = await asyncio.gather(self.start_upload(assignment), self.report(assignment))
        await self.upload(ticket, body)
        await self.submit(assignment, ticket)

    async def run(self):
        """One whole session; returns whether it contributed."""
        assignment = await self.assignment()
        if assignment is None:
            return False
        await self.contribute(assignment)
        return True


@asynccontextmanager
async def make_world(*, populations=(POPULATION,), clock=None, extra=(), seed=0, **overrides):
    """Start services of their own; option names have ``__`` for a dot."""
    recorder = Recorder()
    plugins = Plugins.load(
        environ={},
        overrides={key.replace("__", "."): value for key, value in overrides.items()},
        extra=[recorder, *extra],
        config_file=None,
        working_folder="/",
    )
    clock = ManualClock() if clock is None else clock
    services = Services(
        plugins, populations=populations, base_url=URL, clock=clock, rng=random.Random(seed)
    )
    await services.start()
    try:
        yield World(services, clock, recorder)
    finally:
        await services.stop()


async def code_of(awaitable) -> Code:
    """Return the code that a call fails with; OK if it does not fail."""
    try:
        await awaitable
    except StatusError as error:
        return error.code
    return Code.OK


async def settle() -> None:
    """Let everything that is ready on the event loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def kit():
    """What a test file of this folder works with."""
    return SimpleNamespace(
        world=make_world,
        code_of=code_of,
        settle=settle,
        population=POPULATION,
        url=URL,
        input=INPUT,
        output=OUTPUT,
        sum_configuration=sum_configuration,
    )


@pytest.fixture
def sqlite(tmp_path):
    """Return a way to start services on one SQLite file."""

    def start(**overrides):
        path = str(tmp_path / "fcp.sqlite")
        return make_world(storage="sqlite", storage__sqlite__path=path, **overrides)

    return start
