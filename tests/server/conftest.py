"""A front with services of the test's own, on a real socket; clients that speak bytes; a device."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import socket
import threading
from dataclasses import dataclass, field
from urllib.parse import quote

import pytest
import urllib3

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.protos import aggregations_pb2, common_pb2, google_rpc_status_pb2
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility_pb2
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as operations_pb2
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.protocol.routes import method_name
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.http.frontend import Frontend, bind
from fcp_core.server.http.limits import Limits
from fcp_core.server.services.downloads import Download

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

    def __init__(self) -> None:
        self.names = {"known/upload"}
        self.begun: set[str] = set()
        self.files: dict[str, Download] = {}
        self.received: dict[str, bytes] = {}
        self.abandoned = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    async def begin_upload(self, name, sender=None):
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
        service = route.service.rpartition(".")[2]
        return getattr(getattr(self, method_name(service), None), method_name(route.method), None)


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


class Refused(Exception):
    """An answer that is not 2xx, with its google.rpc.Status."""

    def __init__(self, status: int, body: bytes) -> None:
        error = google_rpc_status_pb2.Status.FromString(body)
        super().__init__(f"HTTP {status}: {error.message}")
        self.status = status
        self.code = Code(error.code)
        self.message = error.message


class Device:
    """Speaks the protocol as the published client does, one step a method."""

    def __init__(self, url: str, population: str, ca: str | None = None) -> None:
        self.entry = url
        self.population = population
        self.pool = urllib3.PoolManager(ca_certs=ca, retries=False, timeout=WAIT)
        self.session_id = ""
        self.forwarding = common_pb2.ForwardingInfo()

    def close(self) -> None:
        self.pool.clear()

    def send(self, method, base, path, body=None, headers=None):
        headers = {"x-goog-api-key": "key", "Accept-Encoding": "gzip", **(headers or {})}
        url = f"{base.rstrip('/')}/{path.lstrip('/')}"
        reply = self.pool.request(method, url, body=body, headers=headers)
        if not 200 <= reply.status < 300:
            raise Refused(reply.status, reply.data)
        return reply.data

    def call(self, base, path, request, response):
        """POST a message, gzipped even when it is empty."""
        data = request.SerializeToString()
        headers = {"Content-Encoding": "gzip"}
        if data:
            headers["Content-Type"] = "application/x-protobuf"
        body = self.send("POST", base, path + "?%24alt=proto", gzip.compress(data), headers)
        return response.FromString(body)

    def wait(self, base, operation, response):
        """Poll an operation until it is done."""
        while not operation.done:
            assert operation.name.startswith("operations/")
            body = self.send("GET", base, f"/v1/{operation.name}?%24alt=proto")
            operation = operations_pb2.Operation.FromString(body)
        if operation.HasField("error"):
            raise StatusError(Code(operation.error.code), operation.error.message)
        message = response()
        assert operation.response.Unpack(message)
        return message

    def fetch(self, resource):
        if resource.WhichOneof("resource") is None:
            return b""
        assert resource.uri
        reply = self.pool.request("GET", resource.uri)
        if reply.status != 200:
            raise Refused(reply.status, reply.data)
        packed = reply.headers["Content-Type"].lower().endswith("+gzip")
        return gzip.decompress(reply.data) if packed else reply.data

    def check_in(self):
        request = eligibility_pb2.EligibilityEvalTaskRequest()
        request.client_version.version_code = "1"
        request.resource_capabilities.supported_compression_formats.append(1)
        request.eligibility_eval_task_capabilities.supports_multiple_task_assignment = True
        request.eligibility_eval_task_capabilities.supports_native_eets = True
        response = self.call(
            self.entry,
            f"/v1/eligibilityevaltasks/{quote(self.population, safe='')}:request",
            request,
            eligibility_pb2.EligibilityEvalTaskResponse,
        )
        self.session_id = response.session_id
        self.forwarding = response.task_assignment_forwarding_info
        return response

    def _assignments(self, session_id, verb):
        population = quote(self.population, safe="")
        return f"/v1/populations/{population}/taskassignments/{session_id}:{verb}"

    def start(self):
        """Ask for a task; None if there is none for this device."""
        base = self.forwarding.target_uri_prefix
        request = assignments_pb2.StartTaskAssignmentRequest()
        request.client_version.version_code = "1"
        operation = self.call(
            base, self._assignments(self.session_id, "start"), request, operations_pb2.Operation
        )
        response = self.wait(base, operation, assignments_pb2.StartTaskAssignmentResponse)
        return response.task_assignment if response.HasField("task_assignment") else None

    def assignment(self):
        """Check in and get a task, plan and checkpoint."""
        self.check_in()
        task = self.start()
        assert task is not None
        return task, self.fetch(task.plan), self.fetch(task.init_checkpoint)

    def report(self, task, code=Code.OK):
        request = assignments_pb2.ReportTaskResultRequest(
            computation_status_code=int(code),
            aggregation_id=task.aggregation_id,
            task_name=task.task_name,
        )
        self.call(
            self.forwarding.target_uri_prefix,
            self._assignments(task.session_id, "reportresult"),
            request,
            assignments_pb2.ReportTaskResultResponse,
        )

    def start_upload(self, task, token=None):
        base = task.aggregation_data_forwarding_info.target_uri_prefix
        token = quote(token or task.authorization_token, safe="")
        operation = self.call(
            base,
            f"/v1/aggregations/{task.aggregation_id}/clients/{token}:startdataupload",
            aggregations_pb2.StartAggregationDataUploadRequest(),
            operations_pb2.Operation,
        )
        return self.wait(base, operation, aggregations_pb2.StartAggregationDataUploadResponse)

    def upload(self, upload, data, encoding="gzip"):
        self.send(
            "POST",
            upload.resource.data_upload_forwarding_info.target_uri_prefix,
            f"/upload/v1/media/{quote(upload.resource.resource_name)}?upload_protocol=raw",
            gzip.compress(data) if encoding == "gzip" else data,
            {"Content-Encoding": encoding},
        )

    def submit(self, task, upload, resource_name=None):
        token = quote(upload.client_token or task.authorization_token, safe="")
        self.call(
            upload.aggregation_protocol_forwarding_info.target_uri_prefix,
            f"/v1/aggregations/{task.aggregation_id}/clients/{token}:submit",
            aggregations_pb2.SubmitAggregationResultRequest(
                resource_name=resource_name or upload.resource.resource_name
            ),
            aggregations_pb2.SubmitAggregationResultResponse,
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

    make.Refused = Refused
    yield make
    for device in devices:
        device.close()
