"""The routing table: matching what devices send, and building what they send."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol import routes
from fcp_core.protocol.protos import (
    google_api_annotations_pb2,
    google_longrunning_operations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.protos import (
    google_longrunning_operations_pb2 as operations_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import FileDescriptorProto

V1 = "google.internal.federatedcompute.v1."


def found(verb: str, path: str) -> tuple[str, dict[str, str]] | None:
    match = routes.match(verb, path)
    return None if match is None else (match[0].name, match[1])


@pytest.mark.parametrize(
    ("verb", "path", "name", "variables"),
    [
        (
            "POST",
            "/v1/eligibilityevaltasks/pop:request",
            "EligibilityEvalTasks.RequestEligibilityEvalTask",
            {"population_name": "pop"},
        ),
        (
            "POST",
            "/v1/populations/a%2Fb/eligibilityevaltasks/s%3A1:reportresult",
            "EligibilityEvalTasks.ReportEligibilityEvalTaskResult",
            {"population_name": "a/b", "session_id": "s:1"},
        ),
        (
            "POST",
            "/v1/populations/p/taskassignments/s:start",
            "TaskAssignments.StartTaskAssignment",
            {"population_name": "p", "session_id": "s"},
        ),
        (
            "POST",
            "/v1/populations/p/taskassignments/s:performmultiple",
            "TaskAssignments.PerformMultipleTaskAssignments",
            {"population_name": "p", "session_id": "s"},
        ),
        (
            "POST",
            "/v1/populations/p/taskassignments/:reportresult",
            "TaskAssignments.ReportTaskResult",
            {"population_name": "p", "session_id": ""},
        ),
        (
            "POST",
            "/v1/aggregations/7/clients/%7Et~:startdataupload",
            "Aggregations.StartAggregationDataUpload",
            {"aggregation_id": "7", "authorization_token": "~t~"},
        ),
        (
            "POST",
            "/v1/aggregations/7/clients/t:submit",
            "Aggregations.SubmitAggregationResult",
            {"aggregation_id": "7", "client_token": "t"},
        ),
        (
            "POST",
            "/v1/secureaggregations/7/clients/t:submit",
            "SecureAggregations.SubmitSecureAggregationResult",
            {"aggregation_id": "7", "client_token": "t"},
        ),
        (
            "POST",
            "/v1/confidentialaggregations/7/clients/t:abort",
            "ConfidentialAggregations.AbortConfidentialAggregation",
            {"aggregation_id": "7", "client_token": "t"},
        ),
        ("GET", "/v1/operations/a/b%20c", "Operations.GetOperation", {"name": "operations/a/b c"}),
        ("POST", "/v1/operations/a:cancel", "Operations.CancelOperation", {"name": "operations/a"}),
    ],
)
def test_matches(verb: str, path: str, name: str, variables: dict[str, str]) -> None:
    assert found(verb, path) == (name, variables)


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v1/populations/a/b/taskassignments/s:start"),
        ("POST", "/v1/populations/p/taskassignments/s/t:start"),
        ("POST", "/v1/populations/p/taskassignments/s:stop"),
        ("POST", "/v1/populations/p/taskassignments/s:start/"),
        ("POST", "/v1/populations/p/taskassignments/s:start\n"),
        ("POST", "//v1/eligibilityevaltasks/pop:request"),
        ("POST", "/v1/eligibilityevaltasks/pop"),
        ("GET", "/v1/eligibilityevaltasks/pop:request"),
        ("GET", "/v1/operations"),
        ("GET", "/v1/operations/a:cancel"),
        ("DELETE", "/v1/operations/a"),
        ("GET", "/v1/jobs/a"),
        ("GET", ""),
    ],
)
def test_does_not_match(verb: str, path: str) -> None:
    assert routes.match(verb, path) is None


def test_says_which_verb_would_do() -> None:
    assert routes.verbs("/v1/operations/a") == ("GET",)
    assert routes.verbs("/v1/operations/a:cancel") == ("POST",)
    assert routes.verbs("/v1/eligibilityevaltasks/p:request") == ("POST",)
    assert routes.verbs("/v2/eligibilityevaltasks/p:request") == ()


def test_a_long_running_call_knows_its_types() -> None:
    route = routes.route(V1 + "TaskAssignments", "StartTaskAssignment")
    assert route.verb == "POST"
    assert route.request_class is task_assignments_pb2.StartTaskAssignmentRequest
    assert route.response_class is operations_pb2.Operation
    assert route.long_running
    assert route.operation_response_class is task_assignments_pb2.StartTaskAssignmentResponse
    assert route.operation_metadata_class is task_assignments_pb2.StartTaskAssignmentMetadata
    plain = routes.route(V1 + "TaskAssignments", "ReportTaskResult")
    assert not plain.long_running
    assert plain.operation_metadata_class is None


def test_an_unknown_call_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        routes.route(V1 + "TaskAssignments", "StopTaskAssignment")
    with pytest.raises(KeyError):
        routes.url("TaskAssignments.Stop", {})
    with pytest.raises(KeyError):
        routes.url("TaskAssignments.StartTaskAssignment", {"population_name": "p"})


def test_every_variable_is_a_field_of_the_request() -> None:
    for route in routes.ROUTES:
        variables = route.match(route.template.replace("operations/**", "operations/x"))
        names = set(route.request_class.DESCRIPTOR.fields_by_name)
        if "**" not in route.template:
            assert variables
        assert set(variables or ()) <= names


def test_urls_are_escaped_as_devices_do() -> None:
    assert (
        routes.url(
            "TaskAssignments.StartTaskAssignment",
            {"population_name": "a/b c:d", "session_id": "-_.~%"},
        )
        == "/v1/populations/a%2Fb%20c%3Ad/taskassignments/-_.~%25:start"
    )
    assert (
        routes.url("Operations.GetOperation", {"name": "operations/x/y:z"})
        == "/v1/operations/x/y%3Az"
    )
    assert routes.url("Operations.CancelOperation", {"name": "operations/x"}) == (
        "/v1/operations/x:cancel"
    )


@pytest.mark.parametrize("name", ["x", "", "operation/x", "operations"])
def test_an_operation_name_needs_its_prefix(name: str) -> None:
    with pytest.raises(StatusError, match="operations/") as caught:
        routes.url("Operations.GetOperation", {"name": name})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_name_that_is_not_ascii_is_refused_when_sending() -> None:
    with pytest.raises(StatusError, match="ASCII"):
        routes.url("EligibilityEvalTasks.RequestEligibilityEvalTask", {"population_name": "é"})


ASCII = st.text(st.characters(max_codepoint=127))


@given(ASCII, ASCII)
def test_what_is_sent_is_matched(population: str, session: str) -> None:
    variables = {"population_name": population, "session_id": session}
    for name in ("StartTaskAssignment", "ReportTaskResult", "PerformMultipleTaskAssignments"):
        path = routes.url(f"TaskAssignments.{name}", variables)
        assert set(path) <= set(string.ascii_letters + string.digits + "/:%-_.~")
        assert found("POST", path) == (f"TaskAssignments.{name}", variables)


@given(ASCII)
def test_operation_names_are_matched(rest: str) -> None:
    name = f"operations/{rest}"
    for verb, method in (("GET", "GetOperation"), ("POST", "CancelOperation")):
        path = routes.url(f"Operations.{method}", {"name": name})
        assert found(verb, path) == (f"Operations.{method}", {"name": name})


@pytest.mark.parametrize(
    ("escaped", "name"),
    [("a%Az", "a\nz"), ("a%9", "a\t"), ("%0Ab", "\nb"), ("%e2%82%AC", "€"), ("%20", " ")],
)
def test_one_digit_escapes_are_read_where_nothing_else_is_meant(escaped: str, name: str) -> None:
    assert found("POST", f"/v1/eligibilityevaltasks/{escaped}:request") == (
        "EligibilityEvalTasks.RequestEligibilityEvalTask",
        {"population_name": name},
    )


@pytest.mark.parametrize("escaped", ["%", "%G1", "a%-", "%ff", "%C3"])
def test_malformed_escapes_are_the_senders_fault(escaped: str) -> None:
    with pytest.raises(StatusError) as caught:
        routes.match("POST", f"/v1/eligibilityevaltasks/{escaped}:request")
    assert caught.value.code is Code.INVALID_ARGUMENT


def made_file(name: str = "demo/sums.proto", template: str = "/v1/sums/{key}:begin") -> object:
    """Return a file with a service of one long-running method, as a plugin has it."""
    file = FileDescriptorProto(name=name, package="demo.sums", syntax="proto3")
    file.dependency.extend(["google/api/annotations.proto", "google/longrunning/operations.proto"])
    for message, field in (("BeginRequest", "key"), ("BeginResponse", ""), ("BeginMetadata", "")):
        made = file.message_type.add(name=message)
        if field:
            made.field.add(name=field, number=1, type=9, label=1)
    method = file.service.add(name="Sums").method.add(
        name="Begin",
        input_type=".demo.sums.BeginRequest",
        output_type=".google.longrunning.Operation",
    )
    rule = method.options.Extensions[google_api_annotations_pb2.http]  # type: ignore[index]
    rule.post, rule.body = template, "*"
    info = method.options.Extensions[google_longrunning_operations_pb2.operation_info]  # type: ignore[index]
    info.response_type, info.metadata_type = "BeginResponse", "BeginMetadata"
    return file


def test_routes_of_a_plugin_are_found_like_others() -> None:
    assert found("POST", "/v1/sums/a%2Fb:begin") is None
    (added,) = routes.add(made_file())
    assert found("POST", "/v1/sums/a%2Fb:begin") == ("Sums.Begin", {"key": "a/b"})
    assert routes.route("demo.sums.Sums", "Begin") is routes.named("Sums.Begin") is added
    assert routes.url("Sums.Begin", {"key": "a/b"}) == "/v1/sums/a%2Fb:begin"
    assert routes.verbs("/v1/sums/x:begin") == ("POST",)
    assert added.long_running
    assert added.operation_response_class.DESCRIPTOR.full_name == "demo.sums.BeginResponse"
    # Again, and as bytes: nothing changes.
    again = routes.add(made_file().SerializeToString())  # type: ignore[attr-defined]
    assert again == (added,)
    assert routes.named("Sums.Begin") is added
    assert added not in routes.ROUTES


def test_files_that_cannot_be_added_say_why() -> None:
    routes.add(made_file())
    lost = FileDescriptorProto(name="demo/lost.proto", dependency=["nowhere.proto"])
    with pytest.raises(ValueError, match=r"demo/lost\.proto cannot be added"):
        routes.add(lost)
    stolen = FileDescriptorProto.FromString(
        made_file("demo/stolen.proto", "/v1/elsewhere/{key}:begin").SerializeToString()  # type: ignore[attr-defined]
    )
    stolen.package = "demo.stolen"
    stolen.service[0].method[0].input_type = ".demo.stolen.BeginRequest"
    with pytest.raises(ValueError, match="short name"):
        routes.add(stolen)
    stolen.name, stolen.package, stolen.service[0].name = "demo/path.proto", "demo.path", "Other"
    stolen.service[0].method[0].input_type = ".demo.path.BeginRequest"
    rule = stolen.service[0].method[0].options.Extensions[google_api_annotations_pb2.http]  # type: ignore[index]
    rule.post = "/v1/sums/{key}:begin"
    with pytest.raises(ValueError, match=r"path of Sums\.Begin"):
        routes.add(stolen)
