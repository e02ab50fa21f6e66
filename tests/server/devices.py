"""A device whose calls a test makes one by one."""

from __future__ import annotations

import time
from types import SimpleNamespace

import urllib3

from fcp_core.client import steps
from fcp_core.client.addresses import Router
from fcp_core.client.calls import Calls
from fcp_core.client.driver import BlockingDriver
from fcp_core.client.interruption import Interruption
from fcp_core.protocol.protos import aggregations_pb2, common_pb2, google_rpc_status_pb2
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eligibility_pb2
from fcp_core.protocol.protos import task_assignments_pb2 as assignments_pb2
from fcp_core.protocol.status import Code
from tests.server.fronts import WAIT


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
