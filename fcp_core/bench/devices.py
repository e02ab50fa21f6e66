"""One virtual device: a session with the server, in the order of the published client."""

from __future__ import annotations

import asyncio
import functools
import gzip
import random
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf.message import DecodeError

from fcp_core.bench.connections import Connections, split
from fcp_core.bench.report import Recorder
from fcp_core.bench.settings import Load
from fcp_core.protocol.protos import aggregations_pb2 as aggregations
from fcp_core.protocol.protos import common_pb2 as common
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility
from fcp_core.protocol.protos import google_longrunning_operations_pb2 as longrunning
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as specification
from fcp_core.protocol.protos import task_assignments_pb2 as assignments
from fcp_core.protocol.wkt import Duration

_MULTIPLE = specification.PopulationEligibilitySpec.TaskInfo.TASK_ASSIGNMENT_MODE_MULTIPLE
#: What the published client waits between two polls if the server does not say, and at most.
_INTERVAL, _LONGEST = 0.5, 60.0
#: A request that is answered so is sent again.
_AGAIN = (429, 503)
_EMPTY_GZIP = gzip.compress(b"", 1, mtime=0)


class SessionError(Exception):
    """A session that ended early; its text is what the report counts it as."""


class Forwarding:
    """Where calls go and what they carry: a ``ForwardingInfo``, ready to be written.

    :param key: the API key.
    :param compressed: whether bodies are gzipped.
    """

    def __init__(self, base: str, extra: Mapping[str, str], key: str, compressed: bool) -> None:
        self.origin, path = split(base)
        self.path = path.rstrip("/")
        self.plain = f"{self.origin.header}x-goog-api-key: {key}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in extra.items()
        )
        self.header = self.plain + ("Content-Encoding: gzip\r\n" if compressed else "")


class World:
    """What the virtual devices of a run share."""

    def __init__(self, url: str, load: Load, recorder: Recorder, rng: random.Random) -> None:
        self.load = load
        self.recorder = recorder
        self.rng = rng
        self.population = quote(load.population, safe="")
        #: How many devices may talk at a time; one that waits for its next poll does not.
        self.turns = asyncio.Semaphore(load.connections)
        self.entry = self.forwarding(url, {})
        self.check_in = self.packed(self._check_in())
        self.nothing = _EMPTY_GZIP if load.gzip else b""
        self._forwardings: dict[tuple[str, tuple[tuple[str, str], ...]], Forwarding] = {}

    def forwarding(self, base: str, extra: Mapping[str, str]) -> Forwarding:
        """Return where a prefix leads.

        :raises SessionError: if that is no address.
        """
        try:
            return Forwarding(base, extra, self.load.api_key, self.load.gzip)
        except ValueError:
            raise SessionError("an address that is none") from None

    def resolve(self, info: Any) -> Forwarding:
        """Return where the calls go that a ``ForwardingInfo`` is for."""
        base = info.target_uri_prefix
        if base.startswith("/"):
            scheme = "https" if self.entry.origin.secure else "http"
            host = self.entry.origin.header[6:].strip()
            base = f"{scheme}://{host}{base}"
        key = (base, tuple(sorted(info.extra_request_headers.items())))
        if key not in self._forwardings:
            self._forwardings[key] = self.forwarding(base, dict(key[1]))
        return self._forwardings[key]

    def packed(self, message: Any) -> bytes:
        """Return a message as it is sent."""
        data: bytes = message.SerializeToString()
        return gzip.compress(data, 1, mtime=0) if self.load.gzip else data

    @staticmethod
    def _check_in() -> Any:
        request = eligibility.EligibilityEvalTaskRequest()
        request.client_version.version_code = "fcp-bench"
        request.resource_capabilities.supported_compression_formats.append(
            common.RESOURCE_COMPRESSION_FORMAT_GZIP
        )
        capabilities = request.eligibility_eval_task_capabilities
        capabilities.supports_multiple_task_assignment = True
        capabilities.supports_native_eets = True
        return request


class VirtualDevice:
    """Goes through one session.

    :param connections: its own, which are closed with the session, or those of all.
    :param body: what it contributes, as it is sent.
    """

    def __init__(self, world: World, connections: Connections, body: bytes) -> None:
        self._world = world
        self._connections = connections
        self._body = body

    async def run(self) -> str:
        """Check in, take a task, contribute; return how that ended.

        The device has its turn when this is called, and has given it back when this returns.

        :returns: ``contributed``, ``rejected`` (at check-in), ``no task``, or what failed.
        """
        began = time.perf_counter()
        try:
            outcome = await self._session()
        except SessionError as error:
            return str(error)
        except DecodeError:
            return "an answer that is no message"
        except OSError as error:
            return f"connection: {error.strerror or error}"
        finally:
            if not self._world.load.keep:
                self._connections.close()
            self._world.turns.release()
        if outcome == "contributed":
            self._world.recorder.step("session", time.perf_counter() - began)
        return outcome

    async def _session(self) -> str:
        world = self._world
        answer = eligibility.EligibilityEvalTaskResponse.FromString(
            await self._call(
                "check-in",
                world.entry,
                f"/v1/eligibilityevaltasks/{world.population}:request",
                world.check_in,
            )
        )
        kind = answer.WhichOneof("result")
        if kind == "rejection_info":
            return "rejected"
        if kind is None:
            raise SessionError("check-in: no result")
        session = quote(answer.session_id, safe="")
        base = world.resolve(answer.task_assignment_forwarding_info)
        weights: Any = None
        if kind == "eligibility_eval_task":
            spec = await self._specification(answer.eligibility_eval_task)
            weights = self._weights(spec)
            if weights is not None:
                await self._report_eligibility(session)
            named = self._asked_by_name(spec)
            if named:
                return await self._perform_multiple(base, session, named)
            if spec is not None and all(
                info.task_assignment_mode == _MULTIPLE for info in spec.task_info
            ):
                return "no task"
        task = await self._start(base, session, weights)
        return "no task" if task is None else await self._contribute(base, task)

    # Getting a task.

    async def _specification(self, task: Any) -> Any:
        resource = task.population_eligibility_spec
        if resource.WhichOneof("resource") is None:
            return None
        data = await self._fetch("specification", resource)
        return specification.PopulationEligibilitySpec.FromString(data)

    def _weights(self, spec: Any) -> Any:
        """Return what the device says of its eligibility: all it wants is what it was sent for."""
        if spec is None or not spec.eligibility_policies:
            return None
        request = assignments.StartTaskAssignmentRequest()
        info = request.task_eligibility_info
        info.version = 1
        wanted = self._world.load.task
        for task in spec.task_info:
            if task.task_assignment_mode != _MULTIPLE:
                weight = 1.0 if wanted in (None, task.task_name) else 0.0
                info.task_weights.add(task_name=task.task_name, weight=weight)
        return info

    def _asked_by_name(self, spec: Any) -> list[str]:
        wanted = self._world.load.task
        return [
            task.task_name
            for task in (() if spec is None else spec.task_info)
            if task.task_assignment_mode == _MULTIPLE and task.task_name == wanted
        ]

    async def _report_eligibility(self, session: str) -> None:
        await self._call(
            "eligibility",
            self._world.entry,
            f"/v1/populations/{self._world.population}/eligibilityevaltasks/{session}:reportresult",
            self._world.nothing,
        )

    async def _start(self, base: Forwarding, session: str, weights: Any) -> Any:
        """Return the ``TaskAssignment``, or None if the device is sent away."""
        began = time.perf_counter()
        request = assignments.StartTaskAssignmentRequest(task_eligibility_info=weights)
        request.client_version.version_code = "fcp-bench"
        path = f"/v1/populations/{self._world.population}/taskassignments/{session}:start"
        operation = longrunning.Operation.FromString(
            await self._call("start", base, path, self._world.packed(request))
        )
        operation = await self._await(base, operation)
        response = assignments.StartTaskAssignmentResponse()
        self._unpack("start", operation, response)
        self._world.recorder.step("assignment", time.perf_counter() - began)
        if response.WhichOneof("result") != "task_assignment":
            return None
        return response.task_assignment

    async def _perform_multiple(self, base: Forwarding, session: str, names: list[str]) -> str:
        request = assignments.PerformMultipleTaskAssignmentsRequest(task_names=names)
        path = f"/v1/populations/{self._world.population}/taskassignments/{session}:performmultiple"
        response = assignments.PerformMultipleTaskAssignmentsResponse.FromString(
            await self._call("start", base, path, self._world.packed(request))
        )
        outcome = "no task"
        for task in response.task_assignments:
            outcome = await self._contribute(base, task)
        return outcome

    # What is done with it.

    async def _contribute(self, base: Forwarding, task: Any) -> str:
        world = self._world
        if world.load.task not in (None, task.task_name):
            raise SessionError(f"start: another task ({task.task_name})")
        data = world.resolve(task.aggregation_data_forwarding_info)
        for resource in (task.plan, task.init_checkpoint):
            await self._fetch("download", resource)
        report = assignments.ReportTaskResultRequest(
            task_name=task.task_name,
            aggregation_id=task.aggregation_id,
            client_stats=assignments.ClientStats(computation_execution_duration=Duration(nanos=1)),
        )
        path = f"/v1/populations/{world.population}/taskassignments/{quote(task.session_id)}"
        await self._call("report", base, f"{path}:reportresult", world.packed(report))
        aggregation = f"/v1/aggregations/{quote(task.aggregation_id, safe='')}/clients/"
        token = quote(task.authorization_token, safe="")
        operation = longrunning.Operation.FromString(
            await self._call(
                "begin upload", data, f"{aggregation}{token}:startdataupload", world.nothing
            )
        )
        operation = await self._await(data, operation)
        started = aggregations.StartAggregationDataUploadResponse()
        self._unpack("begin upload", operation, started)
        name = started.resource.resource_name
        await self._call(
            "upload",
            world.resolve(started.resource.data_upload_forwarding_info),
            f"/upload/v1/media/{quote(name)}",
            self._body,
            query="upload_protocol=raw",
        )
        submit = aggregations.SubmitAggregationResultRequest(resource_name=name)
        client = quote(started.client_token or task.authorization_token, safe="")
        await self._call(
            "submit",
            world.resolve(started.aggregation_protocol_forwarding_info),
            f"{aggregation}{client}:submit",
            world.packed(submit),
        )
        return "contributed"

    # How it talks.

    async def _fetch(self, step: str, resource: Any) -> bytes:
        """Return a resource, as it is unless it lies in the message that names it."""
        kind = resource.WhichOneof("resource")
        if kind is None:
            return b""
        if kind == "inline_resource":
            inline = resource.inline_resource
            if step == "specification" and inline.compression_format:
                return gzip.decompress(inline.data)
            return bytes(inline.data)
        try:
            origin, path = split(resource.uri)
        except ValueError:
            raise SessionError(f"{step}: an address that is none") from None
        head = f"GET {path or '/'} HTTP/1.1\r\n{origin.header}\r\n".encode()
        return await self._send(step, origin, head, b"")

    async def _await(self, base: Forwarding, operation: Any) -> Any:
        """Poll until an operation is done. A device that waits gives its turn to others."""
        while not operation.done:
            if not operation.name.startswith("operations/"):
                raise SessionError("an operation without a name")
            await self._pause(_interval(operation.metadata))
            path = f"{base.path}/v1/{quote(operation.name)}?%24alt=proto"
            head = f"GET {path} HTTP/1.1\r\n{base.plain}\r\n".encode()
            operation = longrunning.Operation.FromString(
                await self._send("poll", base.origin, head, b"")
            )
        return operation

    @staticmethod
    def _unpack(step: str, operation: Any, response: Any) -> None:
        if operation.WhichOneof("result") == "error":
            raise SessionError(f"{step}: error {operation.error.code}")
        if not operation.response.Unpack(response):
            raise SessionError(f"{step}: no response")

    async def _call(
        self, step: str, base: Forwarding, path: str, body: bytes, query: str = "%24alt=proto"
    ) -> bytes:
        kind = "Content-Type: application/x-protobuf\r\n" if body else ""
        head = (
            f"POST {base.path}{path}?{query} HTTP/1.1\r\n{base.header}{kind}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        return await self._send(step, base.origin, head, body)

    async def _send(self, step: str, origin: Any, head: bytes, body: bytes) -> bytes:
        """Send a request, again if the server has no room, and return the answer's body."""
        world = self._world
        recorder = world.recorder
        send = functools.partial(self._connections.exchange, origin, head, body)
        for attempt in range(world.load.retries + 1):
            began = time.perf_counter()
            status, answer = await send()
            recorder.request(step, time.perf_counter() - began, len(head) + len(body))
            if 200 <= status < 300:
                return answer
            if status not in _AGAIN or attempt == world.load.retries:
                break
            recorder.retries += 1
            await self._pause(world.load.retry_delay * (0.4 + world.rng.uniform(0.6, 1.0)))
        raise SessionError(f"{step}: HTTP {status}")

    async def _pause(self, seconds: float) -> None:
        """Wait, and let others talk meanwhile."""
        turns = self._world.turns
        turns.release()
        await asyncio.sleep(seconds)
        # If the run ends meanwhile, a turn too many is given back, and nobody takes it.
        await turns.acquire()


def _interval(metadata: Any) -> float:
    message = assignments.StartTaskAssignmentMetadata()
    if not metadata.Is(message.DESCRIPTOR):
        return _INTERVAL
    try:
        metadata.Unpack(message)
    except DecodeError:
        return _INTERVAL
    interval = message.polling_interval
    seconds = interval.seconds + interval.nanos / 1e9
    return _INTERVAL if seconds < 0 else float(min(max(seconds, 0.001), _LONGEST))
