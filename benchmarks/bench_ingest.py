"""How fast contributions come in, compared with a bare Tornado handler that adds the same bytes.

Two servers run in processes of their own, one after the other: ours, and the least that Tornado can
do. The clients are threads of this process, with sockets and ready-made bytes. Figures: answers a
second, and CPU time of the server's process for each, which other load on the machine hardly moves.

    python benchmarks/bench_ingest.py [--contributions 64] [--sessions 600] [--megabytes 4]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import aggregations_pb2 as aggregations
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as assignments

CONNECTIONS = (1, 4, 16)
REQUESTS_A_SESSION = 6


class Connection:
    """A kept connection that sends ready-made requests."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        address = (urlsplit(url).hostname, urlsplit(url).port)
        self._socket = socket.create_connection(address)  # type: ignore[arg-type]
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, path: str, body: bytes = b"") -> bytes:
        """Send a request; return the answer's body."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n"
        if len(body) > 16384:
            self._socket.sendall(head.encode())
            self._socket.sendall(body)
        else:
            self._socket.sendall(head.encode() + body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._read()
        header, _, rest = data.partition(b"\r\n\r\n")
        lines = header.split(b"\r\n")
        if lines[0].split()[1] != b"200":
            raise RuntimeError(f"{path}: {lines[0]!r} {rest!r}")
        length = next(int(x[15:]) for x in lines if x.lower().startswith(b"content-length:"))
        while len(rest) < length:
            rest += self._read()
        return rest

    def _read(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Device:
    """The calls of one session after another."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        check_in = eligibility.EligibilityEvalTaskRequest()
        check_in.client_version.version_code = "1"
        self._check_in = check_in.SerializeToString()

    def assign(self) -> assignments.TaskAssignment:
        """Check in and get a task."""
        answer = eligibility.EligibilityEvalTaskResponse.FromString(
            self.connection.post("/v1/eligibilityevaltasks/p:request?%24alt=proto", self._check_in)
        )
        path = f"/v1/populations/p/taskassignments/{answer.session_id}:start?%24alt=proto"
        operation = longrunning.Operation.FromString(self.connection.post(path))
        response = assignments.StartTaskAssignmentResponse()
        if not operation.done or not operation.response.Unpack(response):
            raise RuntimeError("no assignment")
        return response.task_assignment

    def contribute(self, task: assignments.TaskAssignment, body: bytes) -> None:
        """Start an upload, upload, submit."""
        clients = f"/v1/aggregations/{task.aggregation_id}/clients"
        path = f"{clients}/{task.authorization_token}:startdataupload?%24alt=proto"
        operation = longrunning.Operation.FromString(self.connection.post(path))
        started = aggregations.StartAggregationDataUploadResponse()
        operation.response.Unpack(started)
        name = started.resource.resource_name
        self.connection.post(f"/upload/v1/media/{name}?upload_protocol=raw", body)
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


# The servers.


def serve_fcp(elements: int) -> None:
    """Serve one task that sums *elements* floats."""
    from fcp_core.aggregation.configuration import configuration_to_proto
    from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
    from fcp_core.plugins.manager import Plugins
    from fcp_core.rounds.tasks import TaskSpec
    from fcp_core.server import Server

    intrinsic = Intrinsic(
        "federated_sum",
        inputs=(TensorSpec("update", DataType.FLOAT, (elements,)),),
        outputs=(TensorSpec("total", DataType.FLOAT, (elements,)),),
    )
    configuration = configuration_to_proto([intrinsic]).SerializeToString()

    async def main() -> None:
        server = Server(Plugins.load(environ={}))
        await server.start()
        await server.services.tasks.submit(TaskSpec("p", "sum", b"plan", configuration, 10**6))
        print(server.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop()

    asyncio.run(main())


def serve_bare(elements: int) -> None:
    """Serve the least that Tornado can do for the same bytes."""
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets
    from tornado.web import Application, RequestHandler, stream_request_body

    total = np.zeros(elements, np.float32)

    @stream_request_body
    class Upload(RequestHandler):
        def prepare(self) -> None:
            self.body = memoryview(np.empty(int(self.request.headers["Content-Length"]), np.uint8))
            self.at = 0

        def data_received(self, chunk: bytes) -> None:
            self.body[self.at : self.at + len(chunk)] = chunk
            self.at += len(chunk)

        def post(self) -> None:
            np.add(total, np.frombuffer(self.body, np.float32, elements), out=total)

    class Empty(RequestHandler):
        def post(self) -> None:
            request = eligibility.EligibilityEvalTaskRequest.FromString(self.request.body)
            del request
            self.finish(eligibility.EligibilityEvalTaskResponse().SerializeToString())

    async def main() -> None:
        sockets = bind_sockets(0, "127.0.0.1")
        application = Application(
            [("/upload", Upload), (".*", Empty)], log_function=lambda handler: None
        )
        HTTPServer(application).add_sockets(sockets)
        print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(main())


@contextmanager
def running(kind: str, elements: int) -> Iterator[tuple[str, int]]:
    """Run a server in a process of its own; give its URL and process id."""
    command = [sys.executable, __file__, "--serve", kind, "--elements", str(elements)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            assert process.stdin is not None
            process.stdin.close()


# Measuring.


@dataclass
class Rate:
    """Answers a second, and the server's CPU time for each in milliseconds."""

    per_second: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.per_second:8.1f}/s {self.cpu_ms:7.2f} ms CPU"


def cpu_time(pid: int) -> float:
    """Return a process's CPU time so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pid: int, workers: list[Callable[[], None]], count: int) -> Rate:
    """Run *count* pieces of work over the workers."""
    left = iter(range(count))
    lock = threading.Lock()

    def work(step: Callable[[], None]) -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            step()

    cpu, start = cpu_time(pid), time.perf_counter()
    with ThreadPoolExecutor(len(workers)) as pool:
        for future in [pool.submit(work, step) for step in workers]:
            future.result()
    elapsed = time.perf_counter() - start
    return Rate(count / elapsed, 1000 * (cpu_time(pid) - cpu) / count)


def fcp_uploads(url: str, pid: int, connections: int, count: int, body: bytes) -> Rate:
    """Measure contributions whose devices have their tasks already."""
    devices = [Device(url) for _ in range(connections)]
    ready = [devices[0].assign() for _ in range(count)]
    rate = measure(
        pid,
        [lambda device=device: device.contribute(ready.pop(), body) for device in devices],  # type: ignore[misc]
        count,
    )
    for device in devices:
        device.connection.close()
    return rate


def fcp_sessions(url: str, pid: int, connections: int, count: int, body: bytes) -> Rate:
    """Measure whole sessions."""

    def session(device: Device) -> None:
        task = device.assign()
        device.report(task)
        device.contribute(task, body)

    devices = [Device(url) for _ in range(connections)]
    rate = measure(
        pid,
        [lambda device=device: session(device) for device in devices],  # type: ignore[misc]
        count,
    )
    for device in devices:
        device.connection.close()
    return rate


def bare(url: str, pid: int, connections: int, count: int, path: str, body: bytes) -> Rate:
    """Measure as many requests of the bare server."""
    posts = REQUESTS_A_SESSION if path != "/upload" else 1

    def step(connection: Connection) -> None:
        for _ in range(posts):
            connection.post(path, body)

    opened = [Connection(url) for _ in range(connections)]
    rate = measure(
        pid,
        [lambda connection=connection: step(connection) for connection in opened],  # type: ignore[misc]
        count,
    )
    for connection in opened:
        connection.close()
    return rate


def compare(title: str, rows: dict[int, tuple[Rate, Rate]]) -> None:
    """Print the figures and their ratios."""
    print(title)
    for connections, (ours, least) in rows.items():
        print(
            f"  {connections:2d} connections   fcp {ours}   bare Tornado {least}"
            f"   rate x{ours.per_second / least.per_second:.2f}"
            f"   CPU x{ours.cpu_ms / least.cpu_ms:.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributions", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=600)
    parser.add_argument("--megabytes", type=int, default=4)
    parser.add_argument("--serve", choices=("fcp", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--elements", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        {"fcp": serve_fcp, "bare": serve_bare}[arguments.serve](arguments.elements)
        return

    for title, elements, count in (
        (f"contributions of {arguments.megabytes} MB", arguments.megabytes * 250_000, 0),
        (f"sessions of {REQUESTS_A_SESSION} requests, next to nothing in them", 1, 1),
    ):
        body = write_checkpoint({"update": np.ones(elements, np.float32)}, "federated_compute")
        rates: dict[str, dict[int, Rate]] = {"fcp": {}, "bare": {}}
        with running("fcp", elements) as (url, pid):
            for connections in CONNECTIONS:
                ours = fcp_sessions if count else fcp_uploads
                pieces = arguments.sessions if count else arguments.contributions
                ours(url, pid, connections, 10, body)
                rates["fcp"][connections] = ours(url, pid, connections, pieces, body)
        with running("bare", elements) as (url, pid):
            for connections in CONNECTIONS:
                path, sent = ("/empty", b"") if count else ("/upload", body)
                bare(url, pid, connections, 10, path, sent)
                rates["bare"][connections] = bare(url, pid, connections, pieces, path, sent)
        compare(title, {c: (rates["fcp"][c], rates["bare"][c]) for c in CONNECTIONS})


if __name__ == "__main__":
    main()
