"""The published client's calls, over a socket and without ours: what it sends, as it sends it.

Its messages are the recorded ones (`data/README.md`). Around them are the paths, headers and bodies
of its HTTP layer, written out here: the variables of a path are escaped and not repeated in the
body, `$` is escaped in the query, bodies of calls are gzipped even if they are empty, uploads are
neither compressed nor typed, and operations are asked for until they are done.
"""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import secagg_messages_pb2 as messages
from fcp_core.protocol.protos import secure_aggregations_pb2 as pb
from fcp_core.protocol.protos import task_assignments_pb2 as assignments
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server
from fcp_core.testing import RunningServer, query_task
from fcp_secagg.aggregands import MODULAR_URI

DATA = Path(__file__).parent / "data"
KEY, POPULATION, WAIT = "the app's key", "app/people", 60.0
PLAIN = Intrinsic(
    "federated_sum",
    (TensorSpec("plain", DataType.INT64, (1,)),),
    (TensorSpec("plain_total", DataType.INT64, (1,)),),
)


class PublishedClient:
    """One device: a connection, and where the server has sent it."""

    def __init__(self, url: str) -> None:
        self.entry, self.started, self.who = url, None, ""
        where = urlsplit(url)
        # It takes no other address without TLS.
        assert url.startswith("http://localhost:")
        self._host = where.netloc
        self._socket = socket.create_connection((where.hostname, where.port), WAIT)

    def close(self) -> None:
        self._socket.close()

    def write(self, verb: str, base: str, path: str, body: bytes | None, *more: str) -> None:
        """Send a request with libcurl's headers and these."""
        assert base.startswith(self.entry.rstrip("/"))
        where = f"{base.rstrip('/')}/{path}"
        head = [f"{verb} {where[where.index('/', 8) :]} HTTP/1.1", f"Host: {self._host}"]
        head += ["Accept: */*", "Accept-Encoding: gzip", f"x-goog-api-key: {KEY}", *more]
        if body is not None:
            head.append(f"Content-Length: {len(body)}")
        self._socket.sendall("\r\n".join([*head, "", ""]).encode("ascii") + (body or b""))

    def read(self) -> bytes:
        """Return the body of the answer."""
        answer = HTTPResponse(self._socket)
        answer.begin()
        found = answer.read()
        assert 200 <= answer.status < 300, (answer.status, found)
        return gzip.decompress(found) if answer.getheader("Content-Encoding") == "gzip" else found

    def begin(self, forwarding: object, path: str, body: bytes) -> None:
        """Send a call of the protocol."""
        own = [f"{k}: {v}" for k, v in getattr(forwarding, "extra_request_headers", {}).items()]
        # An empty body is compressed, too, and then libcurl says what kind it is.
        kind = "application/x-protobuf" if body else "application/x-www-form-urlencoded"
        own += [f"Content-Type: {kind}", "Content-Encoding: gzip"]
        base = getattr(forwarding, "target_uri_prefix", self.entry)
        self.write("POST", base, f"{path}?%24alt=proto", gzip.compress(body), *own)

    def call(self, forwarding: object, path: str, body: bytes) -> bytes:
        """Make a call of the protocol."""
        self.begin(forwarding, path, body)
        return self.read()

    def operation(self, forwarding, answered: bytes, kind, has_interval=True):
        """Ask for an operation until it is done; return its response."""
        deadline = time.monotonic() + WAIT
        while True:
            found = longrunning.Operation.FromString(answered)
            assert found.name.startswith("operations/")
            if found.done:
                assert found.WhichOneof("result") == "response", found
                assert found.response.type_url == f"type.googleapis.com/{kind.DESCRIPTOR.full_name}"
                return kind.FromString(found.response.value)
            assert time.monotonic() < deadline, found
            if has_interval:
                name = kind.__name__.replace("Response", "Metadata")
                metadata = getattr(pb, name, None) or getattr(assignments, name)
                assert found.metadata.type_url.endswith(f".{name}")
                # It would ask without a pause if there were none.
                interval = metadata.FromString(found.metadata.value).polling_interval
                assert interval.seconds or interval.nanos
            time.sleep(0.01)
            path = f"v1/{quote(found.name, safe='/-_.~')}?%24alt=proto"
            self.write("GET", forwarding.target_uri_prefix, path, None)
            answered = self.read()

    def check_in(self) -> None:
        """Ask for a task until there is one, and for its part in secure aggregation."""
        request = eligibility.EligibilityEvalTaskRequest()
        request.client_version.version_code = "2026"
        capable = request.eligibility_eval_task_capabilities
        capable.supports_multiple_task_assignment = capable.supports_native_eets = True
        path = f"v1/eligibilityevaltasks/{escaped(POPULATION)}:request"
        body = self.call(None, path, request.SerializeToString())
        found = eligibility.EligibilityEvalTaskResponse.FromString(body)
        forwarding = found.task_assignment_forwarding_info
        tasks = f"v1/populations/{escaped(POPULATION)}/taskassignments/"
        start = assignments.StartTaskAssignmentRequest()
        start.client_version.version_code = "2026"
        path = f"{tasks}{escaped(found.session_id)}:start"
        answered = self.call(forwarding, path, start.SerializeToString())
        started = self.operation(forwarding, answered, assignments.StartTaskAssignmentResponse)
        task = started.task_assignment
        assert task.HasField("secure_aggregation_info")
        report = assignments.ReportTaskResultRequest(
            aggregation_id=task.aggregation_id, task_name=task.task_name
        )
        path = f"{tasks}{escaped(task.session_id)}:reportresult"
        self.call(forwarding, path, report.SerializeToString())
        self._start(task)

    def _start(self, task) -> None:
        own = task.aggregation_data_forwarding_info
        who = f"v1/secureaggregations/{escaped(task.aggregation_id)}/clients/"
        answered = self.call(own, f"{who}{escaped(task.authorization_token)}:start", b"")
        kind = pb.StartSecureAggregationResponse
        self.started = self.operation(own, answered, kind, has_interval=False)
        token = self.started.client_token or task.authorization_token
        self.who = f"{who}{escaped(token)}"
        # It ends the session if one of these is empty, also if it uploads nothing in the clear.
        for resource in (self.started.masked_result_resource, self.nonmasked):
            assert resource.data_upload_forwarding_info.target_uri_prefix
        assert self.started.secagg_protocol_forwarding_info.target_uri_prefix

    @property
    def nonmasked(self):
        return self.started.nonmasked_result_resource

    def round(self, method: str, body: bytes) -> None:
        """Send a call of a round."""
        self.begin(self.started.secagg_protocol_forwarding_info, f"{self.who}:{method}", body)

    def wait(self, answered: bytes, kind):
        return self.operation(self.started.secagg_protocol_forwarding_info, answered, kind)

    def upload(self, resource, body: bytes) -> None:
        forwarding = resource.data_upload_forwarding_info
        name = quote(resource.resource_name, safe="/-_.~")
        path = f"upload/v1/media/{name}?upload_protocol=raw"
        kind = "Content-Type: application/x-www-form-urlencoded"
        self.write("POST", forwarding.target_uri_prefix, path, body, kind)
        self.read()

    def submit(self, masked: bytes, plain: bytes | None) -> None:
        """Upload the masked input, and a checkpoint if there is one, and name them."""
        resource = self.started.masked_result_resource
        self.upload(resource, masked)
        body = field(3, resource.resource_name.encode())
        if plain is not None:
            self.upload(self.nonmasked, plain)
            body += field(4, self.nonmasked.resource_name.encode())
        self.round("submit", body)


def escaped(text: str) -> str:
    return quote(text, safe="-_.~")


def varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low]) if not high else bytes([low | 0x80]) + varint(high)


def field(number: int, data: bytes) -> bytes:
    """Return a field of bytes as it is on the wire."""
    return varint(number << 3 | 2) + varint(len(data)) + data


class Recording:
    """A session that was recorded: what each client sent and was sent in each round."""

    def __init__(self, name: str) -> None:
        given = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        self.size, self.minimum = given["clients"], given["minimum_surviving"]
        self.vectors, self.sums = given["vectors"], given["sums"]
        self.dropped = {int(client): step for client, step in given["dropped"].items()}
        self.sent: dict[tuple[str, int], bytes] = {}
        self.received: dict[tuple[str, int], bytes] = {}
        for item in given["messages"]:
            data = base64.b64decode(item["message"])
            to_server = item["direction"] == "client_to_server"
            kind = "ClientToServer" if to_server else "ServerToClient"
            message = getattr(messages, f"{kind}WrapperMessage").FromString(data)
            name = message.WhichOneof("message_content")
            # The wrapper is not sent over HTTP: its bytes are those of what is in it and a head.
            inner = data[len(data) - getattr(message, name).ByteSize() :]
            (self.sent if to_server else self.received)[name, item["client"]] = inner

    def task(self, *more: Intrinsic):
        """Return the task that such a session is of."""
        summed = [
            Intrinsic(
                MODULAR_URI,
                (TensorSpec(vector["name"], DataType.INT64, (vector["length"],)),),
                (TensorSpec(f"{vector['name']}_total", DataType.INT64, (vector["length"],)),),
                (Parameter("", np.array(vector["modulus"], np.int64)),),
            )
            for vector in self.vectors
        ]
        gone = sum(step < 3 for step in self.dropped.values())
        return query_task(
            *summed,
            *more,
            population=POPULATION,
            goal_count=self.size,
            minimum_count=self.size - gone,
            over_selection=1.0,
            deadline=86400.0,
        )


def until(running: RunningServer, task: str, words: str) -> None:
    deadline = time.monotonic() + WAIT
    while not any(words in note for note in running.status(task).notes):
        assert time.monotonic() < deadline, running.status(task).notes
        time.sleep(0.01)


ROUNDS = (
    ("advertisekeys", "advertise_keys", "share_keys_request", pb.AdvertiseKeysResponse),
    ("sharekeys", "share_keys_response", "masked_input_request", pb.ShareKeysResponse),
    (
        "submit",
        "masked_input_response",
        "unmasking_request",
        pb.SubmitSecureAggregationResultResponse,
    ),
    ("unmask", "unmasking_response", None, None),
)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("full-4", ()),
        ("full-5-drop-masked-and-unmask", ()),
        ("full-6-drop-advertise-and-share", ()),
        ("client-full-10-drop-in-each-round", (PLAIN,)),
    ],
)
def test_recorded_clients_come_to_the_recorded_sums_over_http(tmp_path, name, more):
    """Each request is what the published client sends; each answer is what its server sent."""
    trace = Recording(name)
    (tmp_path / "fcp.cfg").write_text(
        f"[fcp]\nplugins = fcp_secagg.plugin\n[fcp:population:{POPULATION}]\nprotocol = secagg\n"
        f"[fcp:protocol.secagg]\ncohort = {trace.size}\nminimum = {trace.minimum}\n"
        f"dropout_rate = {1 - trace.minimum / trace.size}\nadversary = curious_server\n"
        "adversarial_rate = 0\njoin_timeout = 60s\nphase_timeout = 60s\npolling_interval = 20ms\n"
    )
    plugins = Plugins.load(config_file=tmp_path / "fcp.cfg", environ={})
    clock = ManualClock()
    with ExitStack() as stack:
        server = Server(plugins, populations=[POPULATION], clock=clock)
        running = stack.enter_context(RunningServer(server, clock=clock))
        task = running.submit(trace.task(*more))
        clients = {}
        for number in range(trace.size):
            clients[number] = client = PublishedClient(running.url)
            stack.callback(client.close)
            client.check_in()
            moduli = {n: a.modulus for n, a in client.started.secure_aggregands.items()}
            assert moduli == {v["name"]: v["modulus"] for v in trace.vectors}
            info = client.started.protocol_execution_info
            assert info.expected_number_of_clients == trace.size
            assert info.minimum_surviving_clients_for_reconstruction == trace.minimum
        for step, (method, sent, received, kind) in enumerate(ROUNDS):
            leaving = {number for number in clients if trace.dropped.get(number) == step}
            for number in leaving:
                client = clients.pop(number)
                if method == "sharekeys":
                    # Its own machine gave up; in other rounds it just vanishes.
                    client.round("abort", field(3, b"\x08\x0d" + field(2, b"a key is wrong")))
                    client.read()
            for number, client in clients.items():
                message = trace.sent[sent, number]
                if method == "submit":
                    tensor = {"plain": np.array([number], np.int64)}
                    plain = write_checkpoint(tensor, "federated_compute") if more else None
                    client.submit(message, plain)
                else:
                    client.round(method, field(3, message))
            # What is unmasked is answered when it counts, and not before.
            answers = {n: client.read() for n, client in clients.items() if kind is not None}
            if leaving and method != "sharekeys":
                if kind is None:
                    until(running, task, f"R3_UNMASKING, {len(clients)} of")
                running.advance(61.0)
            for number, client in clients.items():
                if kind is None:
                    client.read()
                    continue
                ((_, inner),) = client.wait(answers[number], kind).ListFields()
                assert inner == type(inner).FromString(trace.received[received, number])
        running.advance(86400.0)
        result = running.result(task)
        for vector in trace.vectors:
            assert result[f"{vector['name']}_total"].tolist() == trace.sums[vector["name"]]
        status = running.status(task)
        included = [n for n in range(trace.size) if trace.dropped.get(n, 3) == 3]
        assert status.contributed == len(included)
        if more:
            assert result["plain_total"].tolist() == [sum(included)]
