"""Calls over HTTP: routes, messages, errors and what stays of them in the log."""

from __future__ import annotations

import gzip
import logging
import re

import pytest

from fcp_core.protocol import routes
from fcp_core.protocol.protos import (
    eligibility_eval_tasks_pb2 as eligibility,
)
from fcp_core.protocol.protos import (
    google_longrunning_operations_pb2 as operations,
)
from fcp_core.protocol.protos import (
    task_assignments_pb2 as assignments,
)
from fcp_core.protocol.status import Code, StatusError
from tests.server.calls import CHECK_IN, post


@pytest.fixture
def message():
    message = eligibility.EligibilityEvalTaskRequest()
    message.client_version.version_code = "v7"
    return message


@pytest.mark.parametrize("query", ["?%24alt=proto", "?$alt=proto", ""])
def test_a_call_reaches_its_service(make_front, http, services, requests, message, query):
    front = make_front(services, authenticate=lambda **request: "someone")
    path = "/v1/eligibilityevaltasks/a%2Fb:request" + query
    reply = front.ask(post(http, message.SerializeToString(), path))
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/x-protobuf"
    assert int(reply.headers["Content-Length"]) == len(reply.body)
    assert "Server" not in reply.headers
    assert eligibility.EligibilityEvalTaskResponse.FromString(reply.body).session_id == "s1"
    ((request, caller),) = requests
    assert caller == "someone"
    assert request.population_name == "a/b"
    assert request.client_version.version_code == "v7"


@pytest.mark.parametrize("query", ["?%24alt=json", "?$alt=json", "?alt=json&$alt=proto"])
def test_an_answer_in_another_form_is_refused(make_front, http, services, requests, query):
    front = make_front(services)
    reply = front.ask(post(http, path="/v1/eligibilityevaltasks/a%2Fb:request" + query))
    assert reply.status == 400
    assert not requests


def test_every_route_has_its_variables_put_into_the_message(make_front, http):
    seen = {}

    class Services:
        media = http.Media()

        def method(self, route):
            async def call(request, caller):
                seen[route.service, route.method] = request
                raise StatusError(Code.ABORTED, "seen")

            return call

    front = make_front(Services())
    for route in routes.ROUTES:
        if route.method == "RevokeConfidentialAggregationResult":
            continue  # its variable is bytes; no device is known to send it
        seen.clear()
        names = re.findall(r"\{(\w+)", route.template)
        variables = {name: "operations/a/b" if name == "name" else f"x/{name}" for name in names}
        reply = front.ask(http.head(route.url(variables), route.verb, Content_Length=0))
        assert reply.error == (Code.ABORTED, "seen"), route
        ((called, request),) = seen.items()
        assert called == (route.service, route.method)
        assert type(request) is route.request_class
        assert variables
        assert {name: getattr(request, name) for name in variables} == variables


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/html", None])
def test_the_content_type_does_not_matter(make_front, http, services, requests, message, kind):
    headers = {} if kind is None else {"Content_Type": kind}
    reply = make_front(services).ask(post(http, message.SerializeToString(), **headers))
    assert reply.status == 200
    assert requests[0][0].client_version.version_code == "v7"


def test_gzip_bodies(make_front, http, services, requests, message):
    front = make_front(services)
    data = message.SerializeToString()
    two_members = gzip.compress(data[:3]) + gzip.compress(data[3:])
    for body in (gzip.compress(data), two_members):
        assert front.ask(post(http, body, Content_Encoding="gzip")).status == 200
    assert front.ask(post(http, data, Content_Encoding="identity")).status == 200
    assert [request.client_version.version_code for request, _ in requests] == ["v7"] * 3


def test_an_empty_body_is_gzipped_too(make_front, http, services, requests):
    reply = make_front(services).ask(post(http, gzip.compress(b""), Content_Encoding="gzip"))
    assert reply.status == 200
    assert requests[0][0].client_version.version_code == ""


def test_chunked_bodies(make_front, http, services, requests, message):
    front = make_front(services)
    for encoding, data in (
        ("identity", message.SerializeToString()),
        ("gzip", gzip.compress(message.SerializeToString())),
        ("identity", b""),
    ):
        pieces = [data[:3], data[3:]] if data else []
        header = http.head(CHECK_IN, Transfer_Encoding="chunked", Content_Encoding=encoding)
        assert front.ask(header, http.chunks(*pieces)).status == 200
    assert [r.client_version.version_code for r, _ in requests] == ["v7", "v7", ""]
    assert front.frontend.in_flight == 0


def test_routes_that_are_not(make_front, http, services):
    front = make_front(services)
    reply = front.ask(post(http, path="/v1/nothing"))
    assert (reply.status, reply.error[0]) == (404, Code.NOT_FOUND)
    reply = front.ask(http.head(CHECK_IN, "GET"))
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert "GET is not allowed" in reply.error[1]
    reply = front.ask(http.head(CHECK_IN, "PROPFIND"))
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert reply.error[0] is Code.FAILED_PRECONDITION
    reply = front.ask(http.head("/v1/operations/x", "PUT", Content_Length=0))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET")
    reply = front.ask(post(http, path="/v1/eligibilityevaltasks/%zz:request"))
    assert (reply.status, reply.error[0]) == (400, Code.INVALID_ARGUMENT)
    reply = front.ask(post(http, path="/v1/secureaggregations/a/clients/t:start"))
    assert (reply.status, reply.error[0]) == (501, Code.UNIMPLEMENTED)
    assert "SecureAggregations.StartSecureAggregation" in reply.error[1]


def test_what_clients_ask_for_is_not_remembered(make_front, http, services):
    front = make_front(services)
    front.ask(post(http))
    served = front.frontend._context.served
    known = {key: len(calls) for key, calls in served.items()}
    assert ("POST", "request") in known
    for number in range(20):
        assert front.ask(http.head(f"/v1/a/b:{number}", Content_Length=0)).status == 404
        assert (
            front.ask(http.head(f"/v1/operations/{number}:other", Content_Length=0)).status == 404
        )
    assert {key: len(calls) for key, calls in served.items()} == known


def test_head_of_a_call_has_no_body(make_front, http, services):
    reply = make_front(services).ask(http.head(CHECK_IN, "HEAD"), method="HEAD")
    assert (reply.status, reply.body) == (405, b"")


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_errors_of_services(make_front, http, services, code):
    error = services.eligibility_eval_tasks.answer = StatusError(code, "what was wrong")
    reply = make_front(services).ask(post(http))
    # Clients since September 2024 may crash after a 503.
    assert reply.status == (429 if code is Code.UNAVAILABLE else error.http)
    assert reply.error == (code, "what was wrong")
    retry = code in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)
    assert ("Retry-After" in reply.headers) is retry


def test_a_fault_of_the_server_is_logged_once_and_leaks_nothing(make_front, http, services, caplog):
    services.eligibility_eval_tasks.answer = ValueError("a secret detail")
    reply = make_front(services).ask(post(http))
    assert reply.status == 500
    assert reply.error[0] is Code.INTERNAL
    assert b"secret" not in reply.body
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.name == "fcp.server"
    assert "a secret detail" in caplog.text


def test_an_answer_of_the_wrong_sort_is_a_fault_of_the_server(make_front, http, services, caplog):
    services.eligibility_eval_tasks.answer = None
    assert make_front(services).ask(post(http)).status == 500
    assert "Traceback" in caplog.text


def test_large_answers_are_compressed_for_who_accepts_it(make_front, http, services):
    answer = services.eligibility_eval_tasks.answer
    front = make_front(services)
    for size, packed in ((10, False), (5_000, True), (500_000, True)):
        answer.session_id = "s" * size
        for accept in ("gzip", "deflate, gzip;q=0.5", "*"):
            reply = front.ask(post(http, Accept_Encoding=accept))
            assert (reply.headers["Content-Encoding"] == "gzip") is packed
            body = gzip.decompress(reply.body) if packed else reply.body
            assert body == answer.SerializeToString()
        for accept in ("identity", "gzip;q=0", "br"):
            reply = front.ask(post(http, Accept_Encoding=accept))
            assert reply.headers["Content-Encoding"] is None
            assert reply.body == answer.SerializeToString()


def test_requests_on_one_connection(make_front, http, services, requests, message):
    with make_front(services).connect() as connection:
        for number in range(5):
            message.client_version.version_code = str(number)
            connection.send(post(http, message.SerializeToString()))
            assert connection.reply().status == 200
    assert [r.client_version.version_code for r, _ in requests] == list("01234")


def test_health(make_front, http, services):
    front = make_front(services)
    for path in ("/healthz", "/readyz"):
        assert front.ask(http.head(path, "GET")).status == 200
        assert front.ask(http.head(path, "HEAD"), method="HEAD").status == 200
        reply = front.ask(post(http, path=path))
        assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


def test_answers_of_the_services_may_be_any_message(make_front, http, services):
    class TaskAssignments:
        async def start_task_assignment(self, request, caller):
            operation = operations.Operation(name=f"operations/{request.session_id}", done=True)
            operation.response.Pack(assignments.StartTaskAssignmentResponse())
            return operation

    services.task_assignments = TaskAssignments()
    path = "/v1/populations/p/taskassignments/s%2D1:start"
    reply = make_front(services).ask(post(http, path=path))
    operation = operations.Operation.FromString(reply.body)
    assert operation.name == "operations/s-1"
    assert operation.response.type_url.endswith("v1.StartTaskAssignmentResponse")
