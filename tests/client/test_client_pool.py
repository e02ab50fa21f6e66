"""Connections that are kept, replaced and redirected, over real sockets."""

from __future__ import annotations

import contextlib
import gc
import gzip
import socket
import threading

import pytest

from fcp_core.client.connections import Connection, Pool
from fcp_core.client.origins import split_url
from fcp_core.client.steps import Request
from fcp_core.client.transport import Transport
from fcp_core.protocol.status import Code, StatusError

WAIT = 20.0


@contextlib.contextmanager
def scripted(*answers):
    """Serve connections one after another: each its answers, then it closes. Yields the base URL,
    the requests that came, and how many connections were made."""
    requests, made = [], []
    with socket.create_server(("localhost", 0)) as listener:
        listener.settimeout(WAIT)

        def serve():
            for script in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                made.append(1)
                with connection:
                    connection.settimeout(WAIT)
                    for answer in script:
                        data = b""
                        while not data.endswith(b"\r\n\r\n"):
                            piece = connection.recv(1 << 16)
                            assert piece
                            data += piece
                        requests.append(data)
                        connection.sendall(answer(data) if callable(answer) else answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://localhost:{listener.getsockname()[1]}", requests, made
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def post(url, **fields):
    return Request("x", "POST", f"{url}/v1/x", body=b"", **fields)


def test_connections_are_kept_and_replaced():
    with scripted([OK, OK], [OK]) as (url, requests, made):
        transport = Transport(compress=False)
        # The server closes the first connection after two answers.
        for _ in range(3):
            assert transport.send(post(url)).body == b"ok"
        transport.close()
        assert (len(requests), len(made)) == (3, 2)
        assert transport.bytes_received == 6


def test_a_request_goes_out_before_its_answer_is_waited_for():
    with scripted([OK]) as (url, requests, made):
        transport = Transport(compress=False)
        sent = transport.begin(post(url))
        assert transport.finish(sent).body == b"ok"
        assert (len(requests), len(made)) == (1, 1)
        transport.close()
    # Nobody listens any more: that is said when the answer is waited for.
    sent = transport.begin(post(url, best_effort=True))
    with pytest.raises(StatusError) as caught:
        transport.finish(sent)
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("kept", [303, 307])
def test_a_redirect_is_followed(kept):
    moved = b"HTTP/1.1 %d T\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n" % kept
    with scripted([moved, OK]) as (url, requests, _):
        transport = Transport(compress=False)
        assert transport.send(post(url, headers={"x-goog-api-key": "k"})).body == b"ok"
        method = b"GET" if kept == 303 else b"POST"
        assert requests[-1].startswith(method + b" /there HTTP/1.1\r\n")
        assert b"x-goog-api-key: k" in requests[-1]
        transport.close()


def test_a_key_does_not_go_where_a_redirect_leads():
    with scripted([OK]) as (there, requests, _):
        moved = f"HTTP/1.1 307 T\r\nLocation: {there}/x\r\nContent-Length: 0\r\n\r\n"
        with scripted([moved.encode()]) as (url, *_):
            transport = Transport(compress=False)
            assert transport.send(post(url, headers={"x-goog-api-key": "k"})).body == b"ok"
            assert b"x-goog-api-key" not in requests[0]
            transport.close()


def test_an_endless_redirect_ends():
    moved = b"HTTP/1.1 307 T\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
    with scripted([moved] * 6) as (url, requests, _):
        transport = Transport(compress=False)
        with pytest.raises(StatusError, match="redirects") as caught:
            transport.send(post(url))
        assert caught.value.code is Code.UNKNOWN
        transport.close()
        assert len(requests) == 6  # the first, and five redirects


def test_an_interruption_cuts_off_what_was_sent():
    with scripted([]) as (url, *_):
        transport = Transport(compress=False)
        sent = transport.begin(post(url))
        transport.interruption.request()
        for last in (sent, transport.begin(post(url))):
            with pytest.raises(StatusError) as caught:
                transport.finish(last)
            assert caught.value.code is Code.CANCELLED


def test_what_is_said_in_the_end_goes_out_after_an_interruption():
    with scripted([OK]) as (url, requests, _):
        transport = Transport(compress=False)
        transport.interruption.request()
        assert transport.send(post(url, best_effort=True)).body == b"ok"
        assert len(requests) == 1
        transport.close()


def test_what_is_said_in_the_end_is_not_cut_off_and_so_goes_out_once(monkeypatch):
    receive, over = Connection.receive, threading.Event()

    def interrupted(self, *limits):
        transport.interruption.request()
        over.set()
        return receive(self, *limits)

    def answer(request):
        over.wait(WAIT)
        return OK

    with scripted([OK, answer], [OK]) as (url, requests, made):
        transport = Transport(compress=False)
        assert transport.send(post(url)).body == b"ok"
        monkeypatch.setattr(Connection, "receive", interrupted)
        # It goes over the connection that is kept.
        assert transport.send(post(url, best_effort=True)).body == b"ok"
        assert (len(requests), len(made)) == (2, 1)
        transport.close()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_many_downloads_come_in_their_order(count):
    def echo(request):
        path = request.split()[1]
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path)

    # Each connection serves one request, so that others have to be made meanwhile.
    with scripted(*[[echo]] * count) as (url, requests, _):
        transport = Transport(compress=False)
        contents = transport.download_all([f"{url}/{n}" for n in range(count)])
        assert contents == [b"/%d" % n for n in range(count)]
        assert len(requests) == count
        transport.close()


def test_one_download_that_fails_ends_all():
    with scripted([OK], [b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n"]) as (url, *_):
        transport = Transport(compress=False)
        with pytest.raises(StatusError) as caught:
            transport.download_all([f"{url}/1", f"{url}/2", f"{url}/3"])
        assert caught.value.code is Code.NOT_FOUND
        transport.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"nonsense\r\n\r\n", Code.UNAVAILABLE),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            Code.UNAVAILABLE,
        ),
        (
            b"HTTP/1.1 302 F\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            Code.INVALID_ARGUMENT,
        ),
    ],
)
def test_answers_that_fail(answer, code):
    with scripted([answer]) as (url, *_):
        transport = Transport(compress=False)
        with pytest.raises(StatusError) as caught:
            transport.finish(transport.begin(Request("x", "GET", f"{url}/x")), retried=False)
        assert caught.value.code is code
        transport.close()


def test_an_empty_body_may_be_called_gzip():
    for body in (b"", gzip.compress(b"")):
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
            body
        )
        with scripted([head + body]) as (url, *_):
            transport = Transport()
            assert transport.send(Request("x", "GET", f"{url}/x")).body == b""
            transport.close()


def test_only_some_connections_are_kept():
    pool = Pool()
    with socket.create_server(("localhost", 0)) as listener:
        origin, _ = split_url(f"http://localhost:{listener.getsockname()[1]}/")
        connections = [pool.take(origin, WAIT, fresh=True) for _ in range(9)]
        for connection in connections:
            pool.give_back(connection)
        assert [connection.sock.fileno() == -1 for connection in connections] == [False] * 8 + [
            True
        ]
        pool.close()
        assert all(connection.sock.fileno() == -1 for connection in connections)


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_exempt_outlives_the_others(kept):
    pool = Pool()
    with socket.create_server(("localhost", 0)) as listener:
        origin, _ = split_url(f"http://localhost:{listener.getsockname()[1]}/")
        if kept:
            first = [pool.take(origin, WAIT, fresh=True) for _ in range(2)]
            for connection in first:
                pool.give_back(connection)
        other, exempt = pool.take(origin, WAIT), pool.take(origin, WAIT, exempt=True)
        pool.shut_down()
        assert (other.dropped(), exempt.dropped()) == (True, False)
        for connection in (other, exempt):
            pool.drop(connection)


def test_a_pool_that_nobody_closed_closes_its_connections():
    with socket.create_server(("localhost", 0)) as listener:
        origin, _ = split_url(f"http://localhost:{listener.getsockname()[1]}/")
        pool = Pool()
        connection = pool.take(origin, WAIT)
        pool.give_back(connection)
        del pool
        gc.collect()
        assert connection.sock.fileno() == -1
