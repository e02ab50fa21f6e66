"""Large bodies on real sockets: what follows them, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import ssl
import threading

import numpy as np
import pytest

from fcp_core.protocol.status import Code
from fcp_core.server.http.body import DIRECT
from tests.server.calls import UPLOAD

SIZE = 3_000_001
assert SIZE > DIRECT


@pytest.fixture
def services(http):
    services = http.Services()
    services.media.names |= {"second", "third"}
    return services


@pytest.fixture(scope="module")
def noise():
    return random.Random(7).randbytes(SIZE)


def upload(http, body, name="known/upload", **headers):
    path = UPLOAD.replace("known/upload", name)
    return http.head(path, Content_Length=len(body), **headers) + body


def read_statuses(connection, number):
    """Read answers that may come together."""
    statuses = []
    with connection.socket.makefile("rb") as file:
        for _ in range(number):
            statuses.append(int(file.readline().split()[1]))
            headers = list(iter(file.readline, b"\r\n"))
            file.read(sum(int(h[15:]) for h in headers if h.lower().startswith(b"content-length:")))
    return statuses


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("at_once", [True, False])
def test_what_follows_an_upload_on_its_connection(
    make_front, http, services, noise, encoding, at_once
):
    front = make_front(services)
    sent = gzip.compress(noise, 1) if encoding == "gzip" else noise
    requests = [
        upload(http, sent, Content_Encoding=encoding),
        http.head("/healthz", "GET"),
        upload(http, sent[::-1] if encoding == "identity" else sent, "second"),
        http.head("/v1/nothing", Content_Length=3) + b"abc",
        upload(http, b"small", "third"),
    ]
    with front.connect() as connection:
        if at_once:
            # Pipelined: what follows a body comes with its last bytes.
            sender = threading.Thread(target=connection.send, args=(b"".join(requests),))
            sender.start()
            statuses = read_statuses(connection, len(requests))
            sender.join(http.WAIT)
        else:
            statuses = [connection.send(request).reply().status for request in requests]
    assert statuses == [200, 200, 200, 404, 200]
    media = services.media
    assert media.received["known/upload"] == noise
    assert media.received["second"] == (noise[::-1] if encoding == "identity" else sent)
    assert media.received["third"] == b"small"
    assert front.frontend.in_flight == 0


def test_a_large_body_of_a_client_that_waits_for_100(make_front, http, services, noise):
    front = make_front(services)
    with front.connect() as connection:
        for name in ("known/upload", "second"):
            path = UPLOAD.replace("known/upload", name)
            connection.send(http.head(path, Content_Length=SIZE, Expect="100-continue"))
            told = b""
            while not told.endswith(b"\r\n\r\n"):
                told += connection.socket.recv(1)
            assert told.startswith(b"HTTP/1.1 100 ")
            connection.send(noise)
            assert connection.reply().status == 200  # and no second 100
    assert services.media.received == {"known/upload": noise, "second": noise}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_client_that_dies_in_the_middle(
    make_front, http, services, noise, encoding, part, caplog
):
    front = make_front(services)
    sent = gzip.compress(noise, 1) if encoding == "gzip" else noise
    with front.connect() as connection:
        header = http.head(UPLOAD, Content_Length=len(sent), Content_Encoding=encoding)
        connection.send(header, sent[: int(part * len(sent))])
        assert services.media.started.acquire(timeout=http.WAIT)
        connection.reset()
    assert services.media.abandoned.acquire(timeout=http.WAIT)
    assert front.frontend.in_flight == 0
    assert services.media.received == {}
    assert front.ask(upload(http, sent, Content_Encoding=encoding)).status == 200
    assert services.media.received == {"known/upload": noise}
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_large_body_that_comes_slowly_ends(make_front, http, services, noise):
    front = make_front(services, body_timeout=0.2)
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=SIZE), noise[:100_000])
        assert connection.is_closed()
    assert services.media.abandoned.acquire(timeout=http.WAIT)
    assert front.frontend.in_flight == 0


@pytest.mark.parametrize("after", [0, 600_000, 700_000])
def test_a_bad_large_gzip_body_is_refused_and_the_connection_goes_on(
    make_front, http, services, noise, after
):
    front = make_front(services)
    packed = bytearray(gzip.compress(noise[:800_000], 1))
    packed[after : after + 50_000] = bytes(50_000)
    with front.connect() as connection:
        reply = connection.send(upload(http, bytes(packed), Content_Encoding="gzip")).reply()
        assert (reply.status, reply.error[0]) == (400, Code.INVALID_ARGUMENT)
        assert services.media.abandoned.acquire(timeout=http.WAIT)
        assert connection.send(upload(http, noise)).reply().status == 200
    assert services.media.received == {"known/upload": noise}
    assert front.frontend.in_flight == 0


@pytest.mark.slow
@pytest.mark.parametrize("values", [2, 16, 128])
def test_a_large_gzip_body_may_unpack_to_much_more(make_front, http, services, values):
    """Its size is known at the end only: the memory grows with it."""
    generator = np.random.default_rng(values)
    body = generator.integers(0, values, SIZE, np.uint8).tobytes()
    packed = gzip.compress(body, 6)
    assert DIRECT < len(packed) < len(body)
    front = make_front(services)
    with front.connect() as connection:
        reply = connection.send(upload(http, packed, Content_Encoding="gzip")).reply()
        assert reply.status == 200
        # What follows may use the same memory again.
        reply = connection.send(upload(http, packed, "second", Content_Encoding="gzip")).reply()
        assert reply.status == 200
    assert services.media.received == {"known/upload": body, "second": body}
    assert front.frontend.in_flight == 0


def test_a_large_body_that_is_not_wanted_is_dropped(make_front, http, services, noise):
    """The name is refused while the body is on its way; a bounded part of it is read."""
    front = make_front(services)
    with front.connect() as connection:
        reply = connection.send(upload(http, noise[:900_000], "unknown")).reply()
        assert reply.status == 401
        assert connection.send(http.head("/healthz", "GET")).reply().status == 200
    with front.connect() as connection:
        connection.send(http.head(UPLOAD.replace("known", "un"), Content_Length=500_000_000))
        assert connection.reply().headers["Connection"] == "close"
        with pytest.raises(OSError, match=r"reset|[Pp]ipe"):
            connection.send(*[bytes(65536)] * 800)
    assert front.frontend.in_flight == 0


def test_a_stop_waits_for_a_body_that_comes(make_front, http, services, noise):
    front = make_front(services)
    with front.connect() as connection:
        connection.send(http.head(UPLOAD, Content_Length=SIZE), noise[:1000])
        assert services.media.started.acquire(timeout=http.WAIT)
        stopped = asyncio.run_coroutine_threadsafe(front.frontend.stop(), front.loop)
        connection.send(noise[1000:])
        assert connection.reply().status == 200
        stopped.result(http.WAIT)
        assert connection.is_closed()
    assert services.media.received == {"known/upload": noise}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_large_bodies_over_tls(make_front, http, services, noise, certificates, encoding):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates / "server.pem")
    client = ssl.create_default_context(cafile=certificates / "authority.pem")
    front = make_front(services, tls=server)
    sent = gzip.compress(noise, 1) if encoding == "gzip" else noise
    with front.connect() as connection:
        connection.socket = client.wrap_socket(connection.socket, server_hostname="localhost")
        for name in ("known/upload", "second"):
            connection.send(upload(http, sent, name, Content_Encoding=encoding))
            assert connection.reply().status == 200
            assert connection.send(http.head("/healthz", "GET")).reply().status == 200
        connection.send(http.head(UPLOAD.replace("known/upload", "third"), Content_Length=SIZE))
        connection.send(noise[:1_000_000])
        connection.socket.shutdown(socket.SHUT_RDWR)
    assert services.media.received == {"known/upload": noise, "second": noise}
    assert services.media.abandoned.acquire(timeout=http.WAIT)
    assert front.frontend.in_flight == 0
