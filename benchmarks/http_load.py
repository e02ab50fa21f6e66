"""Clients for benchmarks: kept connections that send ready-made bytes, and what servers cost.

The clients are threads of the benchmark's process. Figures are answers a second, and CPU time of
the server's process for each, which other load on the machine moves less.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from serving import Server

from fcp_core.bench.answers import AnswerReader
from fcp_core.protocol.protos import aggregations_pb2 as aggregations
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as assignments

#: What a device asks a server for in a session: check in, start, report, start upload, upload,
#: submit.
REQUESTS_A_SESSION = 6


class Connection:
    """A kept connection that sends ready-made requests."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        address = (urlsplit(url).hostname, urlsplit(url).port)
        self._socket = socket.create_connection(address)
        self._answers = AnswerReader()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ports(self) -> list[int]:
        """Return the ports of the other end and of this one."""
        return [self._socket.getpeername()[1], self._socket.getsockname()[1]]

    def post(self, path: str, body: bytes = b"", encoding: str = "") -> bytes:
        """POST ready-made bytes; return the answer's body.

        :raises RuntimeError: if the answer is not 200.
        """
        return self.send("POST", path, body, encoding)

    def send(self, method: str, path: str, body: bytes = b"", encoding: str = "") -> bytes:
        """Send a request; return the answer's body.

        :raises RuntimeError: if the answer is not 200.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n"
        if encoding:
            head += f"Content-Encoding: {encoding}\r\n"
        start = f"{head}\r\n".encode()
        if len(body) > 16384:
            self._socket.sendall(start)
            self._socket.sendall(body)
        else:
            self._socket.sendall(start + body)
        while True:
            data = self._socket.recv(65536)
            if not data:
                raise RuntimeError("the server closed the connection")
            answer = self._answers.feed(data)
            if answer is not None:
                break
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {answer.body!r}")
        return answer.body

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Device:
    """The calls of one session after another.

    :param population: where it checks in.
    """

    def __init__(self, url: str, population: str = "p") -> None:
        self.connection = Connection(url)
        self._population = population
        check_in = eligibility.EligibilityEvalTaskRequest()
        check_in.client_version.version_code = "1"
        self._check_in = check_in.SerializeToString()

    def check_in(self) -> eligibility.EligibilityEvalTaskResponse:
        """Check in."""
        path = f"/v1/eligibilityevaltasks/{self._population}:request?%24alt=proto"
        return eligibility.EligibilityEvalTaskResponse.FromString(
            self.connection.post(path, self._check_in)
        )

    def start(self, session_id: str) -> assignments.StartTaskAssignmentResponse:
        """Ask for a task."""
        path = f"/v1/populations/{self._population}/taskassignments/{session_id}:start?%24alt=proto"
        operation = longrunning.Operation.FromString(self.connection.post(path))
        response = assignments.StartTaskAssignmentResponse()
        if not operation.done or not operation.response.Unpack(response):
            raise RuntimeError("there is no answer yet")
        return response

    def assign(self) -> assignments.TaskAssignment:
        """Check in and get a task."""
        response = self.start(self.check_in().session_id)
        if not response.HasField("task_assignment"):
            raise RuntimeError("there is no task")
        return response.task_assignment

    def come_in_vain(self) -> None:
        """Check in, ask for a task if there seems to be one, and get nothing."""
        answer = self.check_in()
        if answer.session_id and self.start(answer.session_id).HasField("task_assignment"):
            raise RuntimeError("there is a task")

    def contribute(self, task: assignments.TaskAssignment, body: bytes, encoding: str = "") -> None:
        """Start an upload, upload, submit."""
        clients = f"/v1/aggregations/{task.aggregation_id}/clients"
        path = f"{clients}/{task.authorization_token}:startdataupload?%24alt=proto"
        operation = longrunning.Operation.FromString(self.connection.post(path))
        started = aggregations.StartAggregationDataUploadResponse()
        operation.response.Unpack(started)
        name = started.resource.resource_name
        self.connection.post(f"/upload/v1/media/{name}?upload_protocol=raw", body, encoding)
        submit = aggregations.SubmitAggregationResultRequest(resource_name=name)
        path = f"{clients}/{started.client_token}:submit?%24alt=proto"
        self.connection.post(path, submit.SerializeToString())

    def report(self, task: assignments.TaskAssignment) -> None:
        """Report that the computation went well."""
        report = assignments.ReportTaskResultRequest(
            aggregation_id=task.aggregation_id, task_name=task.task_name
        )
        path = f"/v1/populations/p/taskassignments/{task.session_id}:reportresult?%24alt=proto"
        self.connection.post(path, report.SerializeToString())


@dataclass(frozen=True)
class Rate:
    """Pieces of work, and the time and the server's CPU time that they took, in seconds."""

    count: int
    seconds: float
    cpu: float

    @property
    def per_second(self) -> float:
        """Pieces a second."""
        return self.count / self.seconds

    @property
    def cpu_ms(self) -> float:
        """The server's CPU time for a piece, in milliseconds."""
        return 1000 * self.cpu / self.count

    def __add__(self, other: Rate) -> Rate:
        """Put two measurements together."""
        return Rate(self.count + other.count, self.seconds + other.seconds, self.cpu + other.cpu)

    def __str__(self) -> str:
        return f"{self.per_second:8.1f}/s {self.cpu_ms:7.2f} ms CPU"


def measure(server: Server, workers: Sequence[Callable[[], None]], count: int) -> Rate:
    """Run *count* pieces of work over the workers, a thread each."""
    left = iter(range(count))
    lock = threading.Lock()

    def work(step: Callable[[], None]) -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            step()

    cpu, start = server.cpu(), time.perf_counter()
    with ThreadPoolExecutor(len(workers)) as pool:
        for future in [pool.submit(work, step) for step in workers]:
            future.result()
    return Rate(count, time.perf_counter() - start, server.cpu() - cpu)
