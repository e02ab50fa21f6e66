"""A server over a real socket that answers what a test scripted, and remembers what it was sent."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fcp_core.client import Client, RetryPolicy
from fcp_core.client.stores import CallableStore, make_query_result
from fcp_core.protocol.protos import (
    aggregations_pb2,
    data_type_pb2,
    eligibility_eval_tasks_pb2,
    google_longrunning_operations_pb2,
    plan_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError

Operation = google_longrunning_operations_pb2.Operation

_QUERY = "?%24alt=proto"
_POPULATION = "/v1/populations/population%2Fname"
_CLIENTS = "/v1/aggregations/aggregation%2F1/clients"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> bytes:
        if self.headers.get("content-encoding") == "gzip":
            return gzip.decompress(self.raw)
        return self.raw


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class ScriptedServer:
    """Maps ``METHOD path`` to answers: bytes, messages, HTTP statuses, Answers or functions.

    A list is answered one by one, its last element for ever.
    """

    population = "population/name"
    eligibility = f"POST /v1/eligibilityevaltasks/population%2Fname:request{_QUERY}"
    eligibility_report = f"POST {_POPULATION}/eligibilityevaltasks/session%201:reportresult{_QUERY}"
    start = f"POST /assign{_POPULATION}/taskassignments/session%201:start{_QUERY}"
    multiple = f"POST /assign{_POPULATION}/taskassignments/session%201:performmultiple{_QUERY}"
    report = f"POST /assign{_POPULATION}/taskassignments/task%20session:reportresult{_QUERY}"
    start_upload = f"POST /data{_CLIENTS}/authorization:startdataupload{_QUERY}"
    upload = "POST /bytes/upload/v1/media/some/resource%20name?upload_protocol=raw"
    submit = f"POST /aggregate{_CLIENTS}/token:submit{_QUERY}"
    abort = f"POST /aggregate{_CLIENTS}/token:abort{_QUERY}"
    get_operation = f"GET /assign/v1/operations/an%20operation{_QUERY}"
    cancel_operation = f"POST /assign/v1/operations/an%20operation:cancel{_QUERY}"

    Answer = Answer
    Operation = Operation

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: dict[str, Any] = {}
        self._lock = threading.Lock()
        outer = self

        class RequestHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else headers and body leave in two packets, of which the second waits for the first.
            wbufsize = -1

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = outer._answer(Request(self.command, self.path, headers, raw))
                self.send_response(answer.status)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)
                self.wfile.flush()

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        class HTTPServer(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = HTTPServer(("localhost", 0), RequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    @property
    def lines(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def of(self, line: str) -> Request:
        """Return the one request whose method and path are *line*."""
        found = [r for r in self.requests if f"{r.method} {r.path}" == line]
        assert len(found) == 1, (line, self.lines)
        return found[0]

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            answer = self.script.get(f"{request.method} {request.path}", 404)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, int):
            return Answer(status=answer)
        if isinstance(answer, bytes):
            return Answer(answer)
        if isinstance(answer, Answer):
            return answer
        return Answer(answer.SerializeToString())

    def done(self, response: Any) -> Any:
        operation = Operation(name="operations/done", done=True)
        operation.response.Pack(response)
        return operation

    def failed(self, code: Code) -> Any:
        operation = Operation(name="operations/failed", done=True)
        operation.error.CopyFrom(StatusError(code, "as scripted").to_proto())
        return operation

    def forward(self, info: Any, prefix: str, **headers: str) -> None:
        info.target_uri_prefix = prefix
        for name, value in headers.items():
            info.extra_request_headers[name.replace("_", "-")] = value

    def eligibility_response(self) -> Any:
        """Return one without eligibility, with windows of 100-200 s and 1000-2000 s."""
        response = eligibility_eval_tasks_pb2.EligibilityEvalTaskResponse(session_id="session 1")
        response.no_eligibility_eval_configured.SetInParent()
        info = response.task_assignment_forwarding_info
        self.forward(info, f"{self.url}/assign/", x_assign="yes")
        response.retry_window_if_accepted.delay_min.seconds = 100
        response.retry_window_if_accepted.delay_max.seconds = 200
        response.retry_window_if_rejected.delay_min.seconds = 1000
        response.retry_window_if_rejected.delay_max.seconds = 2000
        return response

    def assignment(self, plan: Any, name: str = "task") -> Any:
        result = task_assignments_pb2.TaskAssignment(
            session_id="task session",
            authorization_token="authorization",
            aggregation_id="aggregation/1",
            task_name=name,
        )
        result.aggregation_info.SetInParent()
        result.plan.inline_resource.data = plan.SerializeToString()
        info = result.aggregation_data_forwarding_info
        self.forward(info, f"{self.url}/data", x_data="yes")
        return result

    def assigned(self, plan: Any) -> Any:
        response = task_assignments_pb2.StartTaskAssignmentResponse()
        response.task_assignment.CopyFrom(self.assignment(plan))
        return response

    def rejected(self) -> Any:
        response = task_assignments_pb2.StartTaskAssignmentResponse()
        response.rejection_info.SetInParent()
        return response

    def upload_response(self) -> Any:
        response = aggregations_pb2.StartAggregationDataUploadResponse(client_token="token")
        response.resource.resource_name = "some/resource name"
        info = response.resource.data_upload_forwarding_info
        self.forward(info, f"{self.url}/bytes/", x_bytes="yes")
        info = response.aggregation_protocol_forwarding_info
        self.forward(info, f"{self.url}/aggregate", x_aggregate="yes")
        return response

    def script_session(self, plan: Any) -> None:
        """Script a session in which the device is given one task and contributes."""
        self.script[self.eligibility] = self.eligibility_response()
        self.script[self.start] = self.done(self.assigned(plan))
        self.script[self.report] = b""
        self.script[self.start_upload] = self.done(self.upload_response())
        self.script[self.upload] = b"ignored"
        self.script[self.submit] = b""
        self.script[self.abort] = b""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def query_plan() -> Any:
    """A plan that contributes as ``x`` what ``app:/values`` answers for the int64 vector ``v``."""
    plan = plan_pb2.ClientOnlyPlan()
    query = plan.phase.example_query_spec.example_queries.add()
    query.example_selector.collection_uri = "app:/values"
    query.output_vector_specs["x"].vector_name = "v"
    query.output_vector_specs["x"].data_type = data_type_pb2.INT64
    router = plan.phase.federated_example_query
    router.aggregations["x"].federated_compute_checkpoint_aggregation.SetInParent()
    return plan


@pytest.fixture
def make_client(server: ScriptedServer) -> Iterator[Callable[..., Client]]:
    """Makes clients of the scripted server that hold one value, 7, and retry without waiting."""
    clients = []

    def make(**options: Any) -> Client:
        options.setdefault(
            "stores",
            {
                "app:/values": CallableStore(
                    lambda selector: [b"a", b"bc"],
                    query=lambda query: make_query_result({"v": [7]}),
                )
            },
        )
        options.setdefault("api_key", "a key")
        options.setdefault("rng", random.Random(1))
        options.setdefault("retry", RetryPolicy(delay=0))
        client = Client(server.url, server.population, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def executor() -> Any:
    """Runs TensorFlow plans."""
    from fcp_core.client.tensorflow_plan import TensorFlowExecutor

    return TensorFlowExecutor()


@pytest.fixture(scope="module")
def counting_plan() -> Any:
    """A plan that adds up the lengths of the examples of one collection."""
    from tests.client.graphs import constant, counting_graph, external, make_plan, selector

    graph_def = counting_graph()
    constant(graph_def, "selector", selector("app:/x"))
    external(graph_def, "data_0", "selector")
    return make_plan(graph_def, restores=True)
