"""Servers of several real processes, and connections to one of them on purpose."""

from __future__ import annotations

import http.client
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import aggregations_pb2 as aggregations
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import task_assignments_pb2 as assignments
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.assignment import Stage
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.rounds.tokens import label
from fcp_core.server import Server, ServerThread

WAIT = 180.0  # how long anything may take before the test fails
SIZE = 20_000  # numbers in an update: too many to be folded on an event loop


def until(condition, what):
    """Wait for something that another process does."""
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, f"it never came to this: {what}"
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def owner(connection, pids):
    """Return which process has the other end of a connection."""
    client, server = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ends = [int(fields[i].rpartition(":")[2], 16) for i in (1, 2)]
        if ends == [server, client]:
            name = f"socket:[{fields[9]}]"
            for pid in pids:
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    try:
                        if os.readlink(descriptor) == name:
                            return pid
                    except FileNotFoundError:
                        continue
    return None


class Calls:
    """What devices send over one connection that stays."""

    def ask(self, method, path, body=b"", **headers):
        self.request(method, path, body, headers)
        response = self.getresponse()
        return response.status, response.read()

    def call(self, path, request, response):
        status, data = self.ask("POST", f"{path}?%24alt=proto", request.SerializeToString())
        if status != 200:
            raise Refused(status, data)
        return response.FromString(data)


class Connection(Calls, http.client.HTTPConnection):
    pass


class SecureConnection(Calls, http.client.HTTPSConnection):
    pass


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status}: {body!r}")
        self.status = status


class Device:
    """The calls of one session; each may go to another process."""

    def __init__(self, value):
        self.body = write_checkpoint(
            {"update": np.full(SIZE, value, np.float32)}, "federated_compute"
        )

    def check_in(self, connection):
        answer = connection.call(
            "/v1/eligibilityevaltasks/people:request",
            eligibility.EligibilityEvalTaskRequest(),
            eligibility.EligibilityEvalTaskResponse,
        )
        self.session = answer.session_id
        return answer

    def assign(self, connection):
        self.check_in(connection)
        operation = connection.call(
            f"/v1/populations/people/taskassignments/{self.session}:start",
            assignments.StartTaskAssignmentRequest(),
            longrunning.Operation,
        )
        response = assignments.StartTaskAssignmentResponse()
        assert operation.done
        assert operation.response.Unpack(response)
        self.task = response.task_assignment
        return self

    def _path(self, token, verb):
        return f"/v1/aggregations/{self.task.aggregation_id}/clients/{token}:{verb}"

    def start(self, connection):
        operation = connection.call(
            self._path(self.task.authorization_token, "startdataupload"),
            aggregations.StartAggregationDataUploadRequest(),
            longrunning.Operation,
        )
        self.ticket = aggregations.StartAggregationDataUploadResponse()
        operation.response.Unpack(self.ticket)
        return self

    @property
    def upload_path(self):
        return f"/upload/v1/media/{self.ticket.resource.resource_name}?upload_protocol=raw"

    def upload(self, connection):
        status, data = connection.ask("POST", self.upload_path, self.body)
        if status != 200:
            raise Refused(status, data)
        return self

    def submit(self, connection):
        return connection.call(
            self._path(self.ticket.client_token, "submit"),
            aggregations.SubmitAggregationResultRequest(
                resource_name=self.ticket.resource.resource_name
            ),
            aggregations.SubmitAggregationResultResponse,
        )

    def contribute(self, connection):
        self.assign(connection).start(connection).upload(connection).submit(connection)


class Running:
    """A server of several processes on a thread of this one."""

    def __init__(self, processes, overrides, extra, **arguments):
        plugins = Plugins.load(
            environ={}, working_folder="/", overrides=overrides or {}, extra=extra
        )
        arguments = {"populations": ["people"], "host": "127.0.0.1", **arguments}
        self.server = Server(plugins, processes=processes, **arguments)
        self.thread = ServerThread(self.server)
        self.thread.start()
        self.connections = []

    @property
    def pids(self):
        """This process first."""
        return [os.getpid(), *self.server.worker_pids]

    def to(self, pid, tls=None):
        """Return a connection to one process."""

        def connect():
            connection = Connection("127.0.0.1", self.server.port, timeout=WAIT)
            if tls is not None:
                connection = SecureConnection(
                    "127.0.0.1", self.server.port, timeout=WAIT, context=tls
                )
            self.connections.append(connection)
            connection.connect()
            assert connection.ask("GET", "/healthz")[0] == 200
            return connection if owner(connection.sock, self.pids) == pid else None

        return until(connect, f"a connection to {pid}")

    def submit(self, goal, **more):
        intrinsic = Intrinsic(
            "federated_sum",
            inputs=(TensorSpec("update", DataType.FLOAT, (SIZE,)),),
            outputs=(TensorSpec("total", DataType.FLOAT, (SIZE,)),),
        )
        configuration = configuration_to_proto([intrinsic]).SerializeToString()
        spec = TaskSpec("people", "sum", b"plan" * 1000, configuration, goal, **more)
        return self.run(self.server.services.tasks.submit(spec))

    def run(self, work):
        return self.thread.run(work).result(WAIT)

    def status(self, task):
        return self.run(self.server.services.tasks.status(task))

    def is_uploading(self, device):
        """Whether the deciding process knows that an upload has begun."""
        task = self.server.services.tasks.find(device.task.aggregation_id)
        (assignment,) = (a for a in task.machine.all() if a.session_id == label(device.session))
        return assignment.state is Stage.UPLOADING

    def total(self, task):
        """Return what the result's numbers all are."""
        result = open_checkpoint(self.run(self.server.services.tasks.wait(task)))["total"]
        assert len(set(result.tolist())) == 1
        return float(result[0])

    def stop(self):
        for connection in self.connections:
            connection.close()
        self.thread.stop()


@pytest.fixture
def serve():
    running = []

    def make(processes=2, overrides=None, extra=(), **arguments):
        running.append(Running(processes, overrides, extra, **arguments))
        return running[-1]

    yield make
    for server in running:
        server.stop()


@pytest.fixture
def kit():
    class Kit:
        pass

    for item in (until, is_alive, owner, Connection, Refused, Device, StatusError):
        setattr(Kit, item.__name__, staticmethod(item))
    Kit.WAIT = WAIT
    return Kit
