"""Bodies that are read straight off the socket: what follows, what breaks, what is unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import queue
import random
import socket
import ssl
import threading
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.iostream import IOStream

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import inflate as bodies
from fcp_core.server.http.body import DIRECT, InFlight
from fcp_core.server.http.buffers import GRAIN, IDLE, STEP, Buffers
from fcp_core.server.http.inflate import AHEAD, GzipReader
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.turns import PART

UPLOAD = "/upload/v1/media/known/upload?upload_protocol=raw"
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


# Memory that is used again.


class Seconds:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def on_loop(function):
    """Run a test on an event loop: the buffers' timer needs one."""

    def run():
        async def main():
            function()

        asyncio.run(main())

    return run


@on_loop
def test_memory_comes_back_when_the_last_view_is_gone():
    buffers = Buffers()
    first = buffers.take(GRAIN + 1)
    assert (len(first), first.readonly) == (GRAIN + 1, False)
    first[:4] = b"\0\0\x80\x3f"
    views = [first[2:], np.frombuffer(first, np.float32, 2)[:1].reshape(1, 1)]
    address = np.frombuffer(first, np.uint8).ctypes.data
    assert address % 64 == 0
    del first
    second = buffers.take(GRAIN + 1)
    assert np.frombuffer(second, np.uint8).ctypes.data != address
    assert float(views[1][0, 0]) == 1.0
    assert buffers.free == 0
    views.pop()
    assert buffers.free == 0
    views.pop()
    assert buffers.free == 2 * GRAIN
    third = buffers.take(GRAIN + 2)
    assert np.frombuffer(third, np.uint8).ctypes.data == address
    assert buffers.free == 0
    buffers.close()


def test_memory_that_nobody_will_have_again_goes_at_once():
    async def main():
        buffers = Buffers(8 * GRAIN)
        small = buffers.take(GRAIN)
        del small
        large = buffers.take(9 * GRAIN)
        del large
        # Without another body, and before the timer.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [len(block) for _, block in buffers._free] == [GRAIN]
        assert not buffers._returned
        buffers.close()

    asyncio.run(main())


@on_loop
def test_memory_is_not_wasted_on_much_smaller_bodies():
    buffers = Buffers()
    buffers.take(100 * GRAIN)
    assert buffers.free == 100 * GRAIN
    buffers.take(70 * GRAIN)
    assert buffers.free == 170 * GRAIN
    held = buffers.take(90 * GRAIN)
    assert buffers.free == 70 * GRAIN
    del held
    buffers.close()
    assert buffers.free == 0


@on_loop
def test_what_is_kept_is_bounded_and_goes_after_a_while():
    seconds = Seconds()
    buffers = Buffers(4 * GRAIN, time=seconds)
    held = [buffers.take(GRAIN) for _ in range(10)]
    held.clear()
    assert buffers.free == 4 * GRAIN
    seconds.now = IDLE - 0.1
    buffers.trim()
    assert buffers.free == 4 * GRAIN
    held = [buffers.take(GRAIN)]
    held.clear()
    assert buffers.free == 4 * GRAIN
    seconds.now = IDLE
    buffers.trim()
    assert buffers.free == GRAIN  # the one that was used in between
    seconds.now = 2 * IDLE
    buffers.trim()
    assert buffers.free == 0
    buffers.close()


@on_loop
def test_memory_comes_back_from_any_thread_and_not_after_the_end():
    buffers = Buffers()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            views = [[buffers.take(GRAIN)] for _ in range(8)]
            list(pool.map(list.clear, views))
    assert buffers.free == 8 * GRAIN
    view = buffers.take(GRAIN)
    buffers.close()
    del view
    assert buffers.free == 0


# What is unpacked: as zlib does it, whatever does it.


@pytest.fixture(params=["isal", "zlib"])
def unpacker(request, monkeypatch):
    module = zlib if request.param == "zlib" else pytest.importorskip("isal.isal_zlib")
    monkeypatch.setattr(bodies, "_zlib", module)


def read(data, pieces, limit=1 << 20):
    """Give a gzip body to a reader in pieces; return the whole or the code of its refusal."""

    async def main():
        buffers = Buffers()
        limits = Limits(max_decompressed=limit)
        with ThreadPoolExecutor(1) as pool:
            body = GzipReader(None, limits, InFlight(1 << 30), pool, buffers)
            try:
                for piece in pieces:
                    rest = body.receive(data[piece])
                    if rest is not None:
                        await rest
                return bytes(await body.finish())
            except StatusError as error:
                return error.http
            finally:
                body.close()

    return asyncio.run(main())


def expected(data):
    """Say what zlib makes of the members of a gzip body; None if it refuses them."""
    whole = b""
    while data:
        stream = zlib.decompressobj(wbits=31)
        with contextlib.suppress(zlib.error):
            whole += stream.decompress(data)
        if not stream.eof:
            return None
        data = stream.unused_data
    return whole


def split(data, cuts):
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


MEMBERS = st.lists(
    st.tuples(
        st.one_of(st.binary(max_size=300), st.integers(0, 400_000).map(bytes)), st.integers(0, 9)
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("kind", ["isal", "zlib"])
def test_members_in_any_pieces(kind):
    module = zlib if kind == "zlib" else pytest.importorskip("isal.isal_zlib")

    @settings(deadline=None)
    @given(MEMBERS, st.lists(st.integers(0, 1 << 20), max_size=6))
    def check(members, cuts):
        data = b"".join(gzip.compress(body, level, mtime=0) for body, level in members)
        whole = b"".join(body for body, _ in members)
        assert read(data, split(data, cuts)) == (whole if len(whole) <= 1 << 20 else 413)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_zlib", module)
        check()


@pytest.mark.parametrize("kind", ["isal", "zlib"])
def test_damage_is_seen_as_zlib_sees_it(kind):
    module = zlib if kind == "zlib" else pytest.importorskip("isal.isal_zlib")

    @settings(deadline=None)
    @given(MEMBERS, st.data())
    def check(members, draw):
        packed = [gzip.compress(body, level, mtime=0) for body, level in members]
        data = bytearray(b"".join(packed))
        cut = draw.draw(st.integers(0, len(data) - 1), label="cut")
        if draw.draw(st.booleans(), label="truncate"):
            del data[cut:]
        else:
            starts = itertools.accumulate((len(member) for member in packed), initial=0)
            # ISA-L overlooks the reserved flags of a member.
            bits = 0x1F if cut in {start + 3 for start in starts} else 0xFF
            data[cut] ^= draw.draw(st.integers(1, bits), label="flip")
        data = bytes(data)
        result = expected(data)
        if result is not None and len(result) > 1 << 20:
            result = 413
        assert read(data, split(data, [cut])) == (400 if result is None else result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_zlib", module)
        check()


def test_a_bomb_is_stopped_by_whatever_unpacks(unpacker):
    packed = gzip.compress(bytes(32 << 20), 9)
    assert read(packed, [slice(None)], limit=100_000) == 413
    assert read(packed, split(packed, range(0, len(packed), 1000)), limit=100_000) == 413
    assert read(gzip.compress(bytes(100_000)), [slice(None)], limit=100_000) == bytes(100_000)
    assert read(gzip.compress(bytes(100_001)), [slice(None)], limit=100_000) == 413


def test_large_memory_goes_back_apart_from_the_loop():
    """Gigabytes that are unmapped on the loop stop it for seconds."""
    gone = queue.Queue()

    async def main():
        buffers = Buffers(kept=0)
        view = buffers.take(2 * STEP)
        block = view.obj.base.obj if hasattr(view.obj.base, "obj") else view.obj.base
        watched = weakref.ref(block, lambda _: gone.put(threading.current_thread()))
        del view, block
        assert buffers.free == 0
        assert gone.get(timeout=30) is not threading.current_thread()
        assert watched() is None
        buffers.close()

    asyncio.run(main())


def test_what_comes_while_a_step_is_made_belongs_to_it(unpacker, noise):
    packed = memoryview(gzip.compress(noise, 1))
    inflater, begun = bodies.Inflater(), []
    inflater.on_piece = lambda: begun.append(inflater.waiting)

    class Feeding(bytearray):
        def __iadd__(self, made):
            if inflater.waiting < 1000 and len(begun) < 5:
                inflater.feed(packed[len(begun) * 600_000 :][:600_000])
            return super().__iadd__(made)

    output = Feeding()
    inflater.feed(packed[:600_000])
    assert inflater.waiting == 600_000
    assert not inflater.step(2 * SIZE, output)
    inflater.feed(packed[3_000_000:])
    assert not inflater.step(2 * SIZE, output)
    assert bytes(output) == noise
    assert inflater.complete
    assert inflater.waiting == 0
    assert len(begun) == 6


def test_a_body_that_comes_faster_than_it_is_unpacked_waits():
    """What is not unpacked yet is bounded, and all of it arrives."""
    body = np.random.default_rng(3).bytes(3 * AHEAD)
    packed = gzip.compress(body, 1)
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=theirs.sendall, args=(packed,))
    sender.start()

    class Held(ThreadPoolExecutor):
        go = threading.Event()

        def submit(self, *args):
            return super().submit(lambda: self.go.wait() and args[0](*args[1:]))

    async def main():
        with Held(1) as pool:
            stream = IOStream(ours)
            reader = GzipReader(len(packed), Limits(), InFlight(1 << 30), pool, Buffers())
            whole = asyncio.ensure_future(reader.receive_from(stream))
            while reader.received <= AHEAD:
                await asyncio.sleep(0.001)
            for _ in range(100):
                await asyncio.sleep(0.001)
                assert reader.received <= AHEAD + PART
            pool.go.set()
            await whole
            found = await reader.finish()
            reader.close()
            stream.close()
            # A connection keeps the reader of its last request.
            assert reader._whole is None
            assert len(reader._buffer) == 0
            return bytes(found)

    assert asyncio.run(main()) == body
    sender.join()
    theirs.close()
