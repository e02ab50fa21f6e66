"""Calls over HTTP: what reaches a service, what is answered, what is refused."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import re
import threading
import zlib

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

CHECK_IN = "/v1/eligibilityevaltasks/a%2Fb:request?%24alt=proto"


class EligibilityEvalTasks:
    def __init__(self):
        self.requests = []
        self.answer = eligibility.EligibilityEvalTaskResponse(session_id="s1")

    async def request_eligibility_eval_task(self, request, caller):
        self.requests.append((request, caller))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def services(http):
    services = http.Services()
    services.eligibility_eval_tasks = EligibilityEvalTasks()
    return services


@pytest.fixture
def requests(services):
    return services.eligibility_eval_tasks.requests


@pytest.fixture
def message():
    message = eligibility.EligibilityEvalTaskRequest()
    message.client_version.version_code = "v7"
    return message


def post(http, body=b"", path=CHECK_IN, **headers):
    return http.head(path, Content_Length=len(body), **headers) + body


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


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (b"x", "br", "'br'"),
        (b"x", "gzip, gzip", "'gzip, gzip'"),
        (b"plain", "gzip", "not valid gzip"),
        (gzip.compress(bytes(range(200)), mtime=0)[:-9], "gzip", "truncated"),
        (gzip.compress(b"\n\x04a", mtime=0)[:12], "gzip", "truncated"),
        (gzip.compress(b"abcd", mtime=0)[:-8] + bytes(8), "gzip", "not valid gzip"),
        (gzip.compress(b"", mtime=0) + b"rest", "gzip", "not valid gzip"),
        (b"\n\xff", "identity", "v1.EligibilityEvalTaskRequest"),
        (gzip.compress(b"\n\xff", mtime=0), "gzip", "v1.EligibilityEvalTaskRequest"),
    ],
)
def test_bodies_that_are_wrong(make_front, http, services, requests, body, encoding, said):
    front = make_front(services)
    reply = front.ask(post(http, body, Content_Encoding=encoding))
    assert reply.status == 400
    assert reply.headers["Content-Type"] == "application/x-protobuf"
    code, text = reply.error
    assert code is Code.INVALID_ARGUMENT
    assert said in text
    assert requests == []
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


def test_logs_are_quiet_and_carry_no_token(make_front, http, services, caplog):
    caplog.set_level(logging.DEBUG)

    class TaskAssignments:
        async def start_task_assignment(self, request, caller):
            return operations.Operation(name="operations/secret")

    services.task_assignments = TaskAssignments()
    front = make_front(services)
    front.ask(post(http, path="/v1/populations/p/taskassignments/session-7:start"))
    front.ask(post(http, path="/v1/aggregations/a/clients/secret:submit", X_Device="secret"))
    front.ask(post(http, path="/upload/v1/media/secret"))
    stop_in_background(front).result(http.WAIT)  # then everything is logged
    lines = [r.getMessage() for r in caplog.records if r.name != "asyncio"]
    # A session's id is a capability: logs name it by a hash.
    session = hashlib.sha256(b"session-7").hexdigest()[:16]
    assert any(f"StartTaskAssignment {session} -> 200" in line for line in lines)
    assert not any("session-7" in line for line in lines)
    assert any("upload" in line and "-> 401" in line for line in lines)
    assert not any("-> 4" in r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG)
    assert not any("secret" in line for line in lines if "no such upload" not in line)


def test_who_may_not_is_refused_before_the_body(make_front, http, services, requests):
    seen = []

    def authenticate(method, path, headers, peer, certificate):
        seen.append((method, path, headers["x-goog-api-key"], peer))
        raise StatusError(Code.UNAUTHENTICATED, "wrong key")

    front = make_front(services, authenticate)
    with front.connect() as connection:
        connection.send(http.head(CHECK_IN, Content_Length=1000, X_Goog_Api_Key="k"))
        reply = connection.reply()
        assert reply.status == 401
        assert reply.error == (Code.UNAUTHENTICATED, "wrong key")
        # The rest of a small body is dropped, and the connection is good for more.
        connection.send(bytes(1000), http.head("/healthz", "GET"))
        assert connection.reply().body == b"ok\n"
    assert requests == []
    (call,) = seen
    assert call[:3] == ("POST", "/v1/eligibilityevaltasks/a%2Fb:request", "k")
    assert call[3] in ("127.0.0.1", "::1")


def test_a_body_over_the_limit_is_refused_before_it_comes(make_front, http, services, requests):
    front = make_front(services, max_body=1000)
    reply = front.ask(http.head(CHECK_IN, Content_Length=1001))
    assert reply.status == 413
    assert reply.error[0] is Code.FAILED_PRECONDITION
    assert "1001" in reply.error[1]
    assert "1000" in reply.error[1]
    assert requests == []
    assert front.frontend.in_flight == 0


def test_a_client_that_waits_for_100_is_told_at_once(make_front, http, services, requests):
    front = make_front(services, max_body=1000)
    with front.connect() as connection:
        connection.send(http.head(CHECK_IN, Content_Length=10**12, Expect="100-continue"))
        assert connection.reply().status == 413
        assert connection.is_closed()


def test_a_client_that_goes_on_sending_still_gets_its_answer(make_front, http, services):
    front = make_front(services, max_body=1000)
    with front.connect() as connection:
        connection.send(http.head(CHECK_IN, Content_Length=800_000), bytes(800_000))
        reply = connection.reply()
        assert reply.status == 413
        connection.send(http.head("/healthz", "GET"))
        assert connection.reply().status == 200
    with front.connect() as connection:
        connection.send(http.head(CHECK_IN, Content_Length=50_000_000))
        reply = connection.reply()
        assert (reply.status, reply.headers["Connection"]) == (413, "close")
        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            connection.send(*[bytes(65536)] * 800)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_chunked_body_is_counted_as_it_comes(make_front, http, services, requests, encoding):
    front = make_front(services, max_body=1000)
    header = http.head(CHECK_IN, Transfer_Encoding="chunked", Content_Encoding=encoding)
    # The body does not end: the answer comes as soon as the limit is passed.
    reply = front.ask(header, http.chunks(bytes(600), bytes(600))[:-5])
    assert reply.status == 413
    assert requests == []
    assert front.frontend.in_flight == 0


@pytest.mark.parametrize("size", [1 << 16, 64 << 20])
def test_a_zip_bomb_is_stopped(make_front, http, services, requests, size):
    front = make_front(services, max_decompressed=50_000)
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 16)) for _ in range(size >> 16)) + packer.flush()
    reply = front.ask(post(http, bomb, Content_Encoding="gzip"))
    assert reply.status == 413
    assert "50000 bytes after decompression" in reply.error[1]
    assert requests == []
    assert front.frontend.in_flight == 0


def test_a_header_over_the_limit(make_front, http, services):
    front = make_front(services, max_header=4096)
    reply = front.ask(post(http, X_Long="x" * 5000))
    assert (reply.status, reply.error[0]) == (431, Code.FAILED_PRECONDITION)
    assert "4096" in reply.error[1]
    assert front.ask(post(http, path="/v1/" + "y" * 5000)).status == 431
    with front.connect() as connection:
        connection.send(post(http, X_Huge="x" * 50_000))
        assert connection.is_closed()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"not http at all\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: ten\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_http(make_front, http, services, request_bytes, caplog):
    front = make_front(services)
    with front.connect() as connection:
        connection.send(request_bytes)
        assert connection.reply().status in (400, 404)
    assert front.ask(post(http)).status == 200
    assert front.frontend.in_flight == 0
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_slow_header_and_a_slow_body_end(make_front, http, services, requests):
    front = make_front(services, idle_timeout=0.2)
    with front.connect() as connection:
        connection.send(b"POST /v1/x HTTP/1.1\r\nHost:")
        assert connection.is_closed()
    with front.connect() as connection:
        connection.send(http.head(CHECK_IN, Content_Length=10), b"12345")
        assert connection.is_closed()
    with front.connect() as connection:
        assert connection.is_closed()
    assert requests == []
    assert front.frontend.in_flight == 0


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


class Slow:
    """A service that answers when the test says so."""

    def __init__(self):
        self.entered = threading.Event()
        self.release = asyncio.Event()

    async def request_eligibility_eval_task(self, request, caller):
        self.entered.set()
        await self.release.wait()
        return eligibility.EligibilityEvalTaskResponse(session_id="late")


def stop_in_background(front):
    return asyncio.run_coroutine_threadsafe(front.frontend.stop(), front.loop)


def test_a_stop_lets_requests_end(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    front = make_front(services)
    with front.connect() as connection, front.connect() as idle:
        connection.send(post(http))
        idle.send(http.head("/readyz", "GET"))
        assert idle.reply().status == 200
        assert slow.entered.wait(http.WAIT)
        stopped = stop_in_background(front)
        # The stop begins on another thread: until it has, the server is ready.
        while idle.send(http.head("/readyz", "GET")).reply().status == 200:
            pass
        with pytest.raises(ConnectionError):
            http.Connection(front.port)
        front.loop.call_soon_threadsafe(slow.release.set)
        assert connection.reply().status == 200
        stopped.result(http.WAIT)
        assert connection.is_closed()
        assert idle.is_closed()


@pytest.mark.slow
def test_a_stop_cuts_off_a_request_that_hangs(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    front = make_front(services, drain_timeout=0.1)
    with front.connect() as connection, front.connect() as sender:
        connection.send(post(http))
        assert slow.entered.wait(http.WAIT)
        sender.send(http.head(CHECK_IN, Content_Length=10))
        stop_in_background(front).result(http.WAIT)
        reply = connection.reply()
        assert (reply.status, reply.error[0]) == (429, Code.UNAVAILABLE)
        assert sender.is_closed()


def test_a_service_call_goes_on_without_its_client(make_front, http, services):
    services.eligibility_eval_tasks = slow = Slow()
    done = threading.Event()
    wait = slow.request_eligibility_eval_task

    async def call(request, caller):
        await wait(request, caller)
        done.set()
        return eligibility.EligibilityEvalTaskResponse()

    slow.request_eligibility_eval_task = call
    front = make_front(services)
    with front.connect() as connection:
        connection.send(post(http))
        assert slow.entered.wait(http.WAIT)
        connection.reset()
    front.loop.call_soon_threadsafe(slow.release.set)
    assert done.wait(http.WAIT)


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
