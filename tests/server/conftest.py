"""A front with services of the test's own, on a real socket; clients that speak bytes; a device."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import urllib3

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import steps
from fcp_core.client.addresses import Router
from fcp_core.client.calls import Calls
from fcp_core.client.driver import BlockingDriver
from fcp_core.client.interruption import Interruption
from fcp_core.protocol.protos import aggregations_pb2, common_pb2, google_rpc_status_pb2
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility_pb2
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.protocol.routes import method_name
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.http.frontend import Frontend
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.listeners import bind
from fcp_core.server.services.published import Download

WAIT = 30.0  # how long anything may take before the test fails


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def error(self):
        status = google_rpc_status_pb2.Status.FromString(self.body)
        return Code(status.code), status.message


class Connection:
    """One TCP connection: send bytes, read answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("localhost", port), timeout=WAIT)

    def send(self, *pieces: bytes) -> Connection:
        for piece in pieces:
            self.socket.sendall(piece)
        return self

    def reply(self, method: str = "POST") -> Reply:
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        return Reply(response.status, response.headers, response.read())

    def is_closed(self) -> bool:
        """Wait until the other side closes; False if it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.socket.close()


def head(path: str, method: str = "POST", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Media:
    """Knows the upload names it was given; each is good for one complete upload."""

    held = 0

    def on_release(self, call, waiting):
        self.released = call

    def behind(self, behind):
        pass

    def __init__(self) -> None:
        self.names = {"known/upload"}
        self.begun: set[str] = set()
        self.files: dict[str, Download] = {}
        self.received: dict[str, bytes] = {}
        self.abandoned = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    async def begin_upload(self, name, sender=None):
        if name in self.received:
            return False
        if name not in self.names or name in self.begun:
            raise StatusError(Code.UNAUTHENTICATED, f"no such upload: {name}")
        self.begun.add(name)
        self.started.release()
        return True

    async def finish_upload(self, name, body, sender=None):
        self.names.remove(name)
        self.received[name] = bytes(body)

    async def abandon_upload(self, name, sender=None):
        self.begun.discard(name)
        self.abandoned.release()

    async def download(self, name):
        if name not in self.files:
            raise StatusError(Code.NOT_FOUND, "nothing here")
        return self.files[name]


@dataclass
class Services:
    """Services that answer what the test says; a name that is not set is not offered."""

    media: Media = field(default_factory=Media)

    def method(self, route):
        """Return what serves a call: a method of the attribute that is named after its service."""
        service = getattr(self, method_name(route.service.rpartition(".")[2]), None)
        return getattr(service, method_name(route.method), None)

    async def problem(self):
        """Nothing is wrong."""
        return ""

    def turn_away(self, route, variables):
        """Turn nobody away: an error is answered as it is."""
        return None


class Front:
    """A front on its own thread."""

    def __init__(self, services, authenticate, limits, tls=None, **more) -> None:
        self.services = services
        sockets = bind("localhost", 0)
        self.port = sockets[0].getsockname()[1]
        self.frontend = Frontend(services, authenticate, limits, sockets, tls, **more)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(self._start())

    async def _start(self) -> None:
        self.frontend.start()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT)

    def connect(self) -> Connection:
        return Connection(self.port)

    def ask(self, *pieces: bytes, method: str = "POST") -> Reply:
        with self.connect() as connection:
            return connection.send(*pieces).reply(method)

    def stop(self) -> None:
        self.run(self.frontend.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT)
        self.loop.close()


@pytest.fixture
def make_front():
    fronts = []

    def make(services=None, authenticate=lambda **request: None, tls=None, metrics=None, **limits):
        front = Front(services or Services(), authenticate, Limits(**limits), tls, metrics=metrics)
        fronts.append(front)
        return front

    yield make
    for front in fronts:
        front.stop()


@pytest.fixture(name="http")
def helpers():
    return Helpers


class Helpers:
    """The helpers above, for tests, which cannot import a conftest."""

    head = staticmethod(head)
    chunks = staticmethod(chunks)
    Connection = Connection
    Services = Services
    Media = Media
    Download = Download
    WAIT = WAIT


@pytest.fixture
def sum_task():
    """Makes tasks that sum ``update``, of three floats, to ``total``."""
    intrinsic = Intrinsic(
        "federated_sum",
        inputs=(TensorSpec("update", DataType.FLOAT, (3,)),),
        outputs=(TensorSpec("total", DataType.FLOAT, (3,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()

    def make(population="people", goal=3, name="sum", **more):
        return TaskSpec(
            population=population,
            name=name,
            aggregation=configuration,
            goal_count=goal,
            **{"plan": b"the plan", "checkpoint": b"the checkpoint", **more},
        )

    return make


class Rejected(Exception):
    """The server has no task for the device."""


class Refused(Exception):
    """An answer that is not 2xx, with its google.rpc.Status."""

    def __init__(self, status: int, body: bytes) -> None:
        error = google_rpc_status_pb2.Status.FromString(body)
        super().__init__(f"HTTP {status}: {error.message}")
        self.status = status
        self.code = Code(error.code)
        self.message = error.message


class Device:
    """Makes the client's calls one by one, a method each; a refusal is raised with its body."""

    def __init__(self, url: str, population: str, ca: str | None = None) -> None:
        self.entry = url
        self.population = population
        self.pool = urllib3.PoolManager(ca_certs=ca, retries=False, timeout=WAIT)
        self.session_id = ""
        self.forwarding = common_pb2.ForwardingInfo(target_uri_prefix=url)
        self.router = Router(url, {"x-goog-api-key": "key"}, any_address=True)
        self.calls = Calls(self.router)
        self.driver = BlockingDriver(
            SimpleNamespace(population=population, history=None, name="", now=time.time),
            SimpleNamespace(send=self.perform, interruption=Interruption()),
        )

    def close(self) -> None:
        self.pool.clear()

    def send(self, method, base, path, body=None, headers=None):
        headers = {"x-goog-api-key": "key", "Accept-Encoding": "gzip", **(headers or {})}
        url = f"{base.rstrip('/')}/{path.lstrip('/')}"
        reply = self.pool.request(method, url, body=body, headers=headers)
        if not 200 <= reply.status < 300:
            raise Refused(reply.status, reply.data)
        return reply.data

    def perform(self, request):
        """Carry out a step of the client's."""
        if request.name == "download":
            reply = self.pool.request("GET", request.url)
            if reply.status != 200:
                raise Refused(reply.status, reply.data)
            return steps.Reply(reply.data, reply.headers["Content-Type"])
        at = request.url.index("/", len("https://"))
        base, path = request.url[:at], request.url[at:]
        return steps.Reply(self.send(request.method, base, path, request.body, request.headers))

    def call(self, forwarding, name, request):
        """Call a method, and wait for its operation."""
        endpoint = self.router.resolve(forwarding, "address")
        return self.driver.run(self.calls.call(endpoint, name, request))

    def fetch(self, resource):
        return self.driver.run(self.calls.fetch(resource))

    def check_in(self, formats=(common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP,)):
        request = eligibility_pb2.EligibilityEvalTaskRequest(population_name=self.population)
        request.client_version.version_code = "1"
        request.resource_capabilities.supported_compression_formats.extend(formats)
        request.eligibility_eval_task_capabilities.supports_multiple_task_assignment = True
        request.eligibility_eval_task_capabilities.supports_native_eets = True
        entry = common_pb2.ForwardingInfo(target_uri_prefix=self.entry)
        response = self.call(entry, "EligibilityEvalTasks.RequestEligibilityEvalTask", request)
        self.session_id = response.session_id
        self.forwarding = response.task_assignment_forwarding_info
        return response

    def start(self):
        """Ask for a task; None if there is none for this device."""
        request = assignments_pb2.StartTaskAssignmentRequest(
            population_name=self.population, session_id=self.session_id
        )
        request.client_version.version_code = "1"
        response = self.call(self.forwarding, "TaskAssignments.StartTaskAssignment", request)
        return response.task_assignment if response.HasField("task_assignment") else None

    def assignment(self):
        """Check in and get a task, plan and checkpoint.

        :raises Rejected: if there is none for it.
        """
        if self.check_in().HasField("rejection_info"):
            raise Rejected
        task = self.start()
        if task is None:
            raise Rejected
        return task, self.fetch(task.plan), self.fetch(task.init_checkpoint)

    def report(self, task, code=Code.OK):
        request = assignments_pb2.ReportTaskResultRequest(
            population_name=self.population,
            session_id=task.session_id,
            computation_status_code=int(code),
            aggregation_id=task.aggregation_id,
            task_name=task.task_name,
        )
        self.call(self.forwarding, "TaskAssignments.ReportTaskResult", request)

    def start_upload(self, task, token=None):
        request = aggregations_pb2.StartAggregationDataUploadRequest(
            aggregation_id=task.aggregation_id,
            authorization_token=token or task.authorization_token,
        )
        return self.call(
            task.aggregation_data_forwarding_info,
            "Aggregations.StartAggregationDataUpload",
            request,
        )

    def upload(self, upload, data, encoding="gzip"):
        info = upload.resource.data_upload_forwarding_info
        endpoint = self.router.resolve(info, "address")
        if encoding != "gzip":
            endpoint.headers["Content-Encoding"] = encoding
        self.driver.run(self.calls.upload(endpoint, upload.resource, data, encoding == "gzip"))

    def submit(self, task, upload, resource_name=None):
        request = aggregations_pb2.SubmitAggregationResultRequest(
            aggregation_id=task.aggregation_id,
            client_token=upload.client_token or task.authorization_token,
            resource_name=resource_name or upload.resource.resource_name,
        )
        self.call(
            upload.aggregation_protocol_forwarding_info,
            "Aggregations.SubmitAggregationResult",
            request,
        )

    def contribute(self, data):
        """Do a whole session with this checkpoint; return what was downloaded."""
        task, plan, checkpoint = self.assignment()
        upload = self.start_upload(task)
        self.report(task)
        self.upload(upload, data)
        self.submit(task, upload)
        return plan, checkpoint


@pytest.fixture
def make_device():
    devices = []

    def make(url, population, ca=None):
        device = Device(url, population, ca)
        devices.append(device)
        return device

    make.Refused, make.Rejected = Refused, Rejected
    yield make
    for device in devices:
        device.close()
