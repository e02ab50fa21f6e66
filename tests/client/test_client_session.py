"""The order, addresses, headers and bodies of a session, against a scripted server."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fcp_core.client import Outcome, TaskOutcome, calls
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.compression import LOOKED_AT
from fcp_core.protocol.protos import (
    aggregations_pb2,
    common_pb2,
    eligibility_eval_tasks_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code
from tests.client.scripts import ACCEPTED, PERMANENT, within


def test_contributes(server, query_plan, make_client):
    server.script_session(query_plan)
    client = make_client(client_version="v9", attestation_measurement="proof")
    result = client.run_once()

    assert result.outcome is Outcome.CONTRIBUTED
    assert result.error is None
    assert within(result.retry_after, ACCEPTED)
    (task,) = result.tasks
    assert (task.task_name, task.aggregation_id) == ("task", "aggregation/1")
    assert task.outcome is TaskOutcome.CONTRIBUTED
    assert server.lines[:2] == [server.eligibility, server.start]
    assert sorted(server.lines[2:4]) == sorted([server.report, server.start_upload])
    assert server.lines[4:] == [server.upload, server.submit]
    assert result.bytes_sent == sum(len(request.raw) for request in server.requests)

    request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest.FromString(
        server.of(server.eligibility).body
    )
    assert request.population_name == ""
    assert request.client_version.version_code == "v9"
    assert request.attestation_measurement.value == "proof"
    gzip_format = common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP
    assert request.resource_capabilities.supported_compression_formats == [gzip_format]
    assert request.eligibility_eval_task_capabilities.supports_multiple_task_assignment
    assert request.eligibility_eval_task_capabilities.supports_native_eets

    start = task_assignments_pb2.StartTaskAssignmentRequest.FromString(server.of(server.start).body)
    assert not start.HasField("task_eligibility_info")
    assert start.client_version.version_code == "v9"
    assert start.attestation_measurement.value == "proof"
    report = task_assignments_pb2.ReportTaskResultRequest.FromString(server.of(server.report).body)
    assert report.computation_status_code == 0
    assert (report.task_name, report.aggregation_id) == ("task", "aggregation/1")
    assert report.client_stats.HasField("computation_execution_duration")
    submit = aggregations_pb2.SubmitAggregationResultRequest.FromString(
        server.of(server.submit).body
    )
    assert submit.resource_name == "some/resource name"
    assert (submit.aggregation_id, submit.client_token) == ("", "")

    uploaded = server.of(server.upload)
    assert task.checkpoint_bytes == len(uploaded.body)
    assert task.uploaded_bytes == len(uploaded.raw)
    assert open_checkpoint(uploaded.body)["x"].tolist() == [7]


def test_headers_follow_the_forwarding_info(server, query_plan, make_client):
    server.script_session(query_plan)
    make_client().run_once()
    extra = {
        server.eligibility: set(),
        server.start: {"x-assign"},
        server.report: {"x-assign"},
        server.start_upload: {"x-data"},
        server.upload: {"x-bytes"},
        server.submit: {"x-aggregate"},
    }
    assert len(server.requests) == len(extra)
    for line, headers in extra.items():
        request = server.of(line)
        assert request.headers["x-goog-api-key"] == "a key"
        assert request.headers["content-encoding"] == "gzip"
        assert request.headers["accept-encoding"] == "gzip"
        assert request.headers["content-length"] == str(len(request.raw))
        assert {name for name in request.headers if name.startswith("x-")} == {
            "x-goog-api-key",
            *headers,
        }
        content_type = "application/x-protobuf" if request.body else None
        assert request.headers.get("content-type") == content_type
    # An empty message is a gzip body of nothing, not no body.
    empty = server.of(server.start_upload)
    assert len(empty.raw) >= 20
    assert gzip.decompress(empty.raw) == b""


def test_uncompressed_requests_and_an_empty_key(server, query_plan, make_client):
    server.script_session(query_plan)
    assert make_client(compress=False, api_key="").run_once().outcome is Outcome.CONTRIBUTED
    check_in = server.of(server.eligibility)
    assert check_in.headers["accept-encoding"] == "identity"
    request = eligibility_eval_tasks_pb2.EligibilityEvalTaskRequest.FromString(check_in.body)
    assert not request.resource_capabilities.supported_compression_formats
    for request in server.requests:
        assert "content-encoding" not in request.headers
        assert request.headers["x-goog-api-key"] == ""
    assert server.of(server.start_upload).raw == b""


@pytest.mark.parametrize(("values", "encoding"), [("noise", None), ("zeros", "gzip")])
def test_a_large_contribution_is_compressed_if_it_shrinks(
    server, query_plan, make_client, monkeypatch, values, encoding
):
    size = 4 * LOOKED_AT
    data = np.random.default_rng(0).bytes(size) if values == "noise" else bytes(size)
    monkeypatch.setattr(calls.Calls, "upload", _with(data, calls.Calls.upload))
    server.script_session(query_plan)
    client = make_client()
    assert client.run_once().outcome is Outcome.CONTRIBUTED
    upload = server.of(server.upload)
    assert upload.headers.get("content-encoding") == encoding
    assert upload.body == data
    # Of zeros so little was sent that it says nothing about the link.
    assert (client._transport.upload_rate is None) == (values == "zeros")


def test_a_fast_link_and_a_slow_one(make_client):
    client = make_client()
    data = bytes(4 * LOOKED_AT)
    for rate, compressed in ((None, True), (1e3, True), (1e15, False)):
        client._transport.upload_rate = rate
        assert (client._settings.encode(data) is not None) is compressed
        assert gzip.decompress(client._settings.encode(b"small")) == b"small"


def _with(data, upload):
    """Return how to upload other bytes than the contribution."""

    def instead(self, endpoint, resource, _, compress=True):
        return upload(self, endpoint, resource, data, compress)

    return instead


def test_relative_prefixes_build_on_the_last_remembered_host(server, query_plan, make_client):
    server.script_session(query_plan)
    response = server.eligibility_response()
    response.task_assignment_forwarding_info.target_uri_prefix = "/assign"
    server.script[server.eligibility] = response
    upload = server.upload_response()
    upload.resource.data_upload_forwarding_info.target_uri_prefix = "/bytes/"
    server.script[server.start_upload] = server.done(upload)
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED


def test_no_client_token_means_the_authorization_token(server, query_plan, make_client):
    server.script_session(query_plan)
    upload = server.upload_response()
    upload.client_token = ""
    server.script[server.start_upload] = server.done(upload)
    submit = server.submit.replace("/token:", "/authorization:")
    server.script[submit] = b""
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED
    assert server.lines[-1] == submit


def test_plan_and_checkpoint_by_uri(server, query_plan, make_client):
    server.script_session(query_plan)
    assigned = server.assigned(query_plan)
    assigned.task_assignment.plan.uri = f"{server.url}/files/plan?a=b"
    assigned.task_assignment.init_checkpoint.uri = f"{server.url}/files/checkpoint"
    server.script[server.start] = server.done(assigned)
    server.script["GET /files/plan?a=b"] = server.Answer(
        gzip.compress(query_plan.SerializeToString()),
        headers={"Content-Type": "application/x-protobuf+GZIP"},
    )
    server.script["GET /files/checkpoint"] = b"checkpoint"
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED
    for line in ("GET /files/plan?a=b", "GET /files/checkpoint"):
        assert not [name for name in server.of(line).headers if name.startswith("x-")]


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0])
def test_a_plan_that_may_be_kept_is_downloaded_once(server, query_plan, make_client, cache_bytes):
    server.script_session(query_plan)
    response = server.assigned(query_plan)
    plan = response.task_assignment.plan
    plan.uri = f"{server.url}/plan"
    plan.client_cache_id = "an id"
    plan.max_age.seconds = 60
    server.script[server.start] = server.done(response)
    server.script["GET /plan"] = query_plan.SerializeToString()
    client = make_client(cache_bytes=cache_bytes)
    for _ in range(3):
        assert client.run_once().outcome is Outcome.CONTRIBUTED
    assert server.lines.count("GET /plan") == (1 if cache_bytes else 3)


def test_inline_resources_may_be_compressed(server, query_plan, make_client):
    server.script_session(query_plan)
    assigned = server.assigned(query_plan)
    inline = assigned.task_assignment.plan.inline_resource
    inline.data = gzip.compress(query_plan.SerializeToString())
    inline.compression_format = common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP
    server.script[server.start] = server.done(assigned)
    assert make_client().run_once().outcome is Outcome.CONTRIBUTED


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda task: setattr(task.plan, "uri", ""), Code.INVALID_ARGUMENT),
        (lambda task: setattr(task.plan, "uri", "http://10.0.0.1:1/"), Code.INVALID_ARGUMENT),
        (lambda task: setattr(task.plan, "uri", "http://localhost/x"), Code.INVALID_ARGUMENT),
        (
            lambda task: setattr(task.plan.inline_resource, "compression_format", 1),
            Code.INVALID_ARGUMENT,
        ),
        (
            lambda task: setattr(task.plan.inline_resource, "compression_format", 9),
            Code.UNIMPLEMENTED,
        ),
        (
            lambda task: task.ClearField("aggregation_data_forwarding_info"),
            Code.INVALID_ARGUMENT,
        ),
        (lambda task: task.confidential_aggregation_info.SetInParent(), Code.INVALID_ARGUMENT),
        (lambda task: task.willow_aggregation_info.SetInParent(), Code.INVALID_ARGUMENT),
    ],
)
def test_assignments_that_cannot_be_served(server, query_plan, make_client, spoil, code):
    server.script_session(query_plan)
    assigned = server.assigned(query_plan)
    spoil(assigned.task_assignment)
    server.script[server.start] = server.done(assigned)
    result = make_client().run_once()
    assert result.outcome is Outcome.FAILED
    assert result.error.code is code
    assert within(result.retry_after, PERMANENT)
    assert server.lines == [server.eligibility, server.start]
