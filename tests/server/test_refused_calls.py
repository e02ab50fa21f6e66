"""Calls that are refused: bodies and headers that are wrong, too long, too slow or not allowed."""

from __future__ import annotations

import gzip
import logging
import zlib

import pytest

from fcp_core.protocol.status import Code, StatusError
from tests.server.calls import CHECK_IN, post


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
