"""Gzip bodies unpacked as they come: in pieces, damaged, and faster than they are unpacked."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import random
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.iostream import IOStream

from fcp_core.protocol.status import StatusError
from fcp_core.server.http import inflate as bodies
from fcp_core.server.http.body import InFlight
from fcp_core.server.http.body_queue import PART
from fcp_core.server.http.buffers import Buffers
from fcp_core.server.http.inflate import AHEAD, GzipReader
from fcp_core.server.http.limits import Limits


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
    @given(MEMBERS, st.integers(0, 1 << 20), st.booleans(), st.integers(1, 255))
    def check(members, cut, truncate, flip):
        packed = [gzip.compress(body, level, mtime=0) for body, level in members]
        data = bytearray(b"".join(packed))
        cut %= len(data)
        if truncate:
            del data[cut:]
        else:
            starts = itertools.accumulate((len(member) for member in packed), initial=0)
            # ISA-L overlooks the reserved flags of a member.
            bits = 0x1F if cut in {start + 3 for start in starts} else 0xFF
            data[cut] ^= (flip & bits) or 1
        data = bytes(data)
        result = expected(data)
        # More than any of these can become, damaged or not: what is too large is another test's.
        found = read(data, split(data, [cut]), limit=1 << 23)
        assert found == (400 if result is None else result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_zlib", module)
        check()


def test_a_bomb_is_stopped_by_whatever_unpacks(unpacker):
    packed = gzip.compress(bytes(32 << 20), 9)
    assert read(packed, [slice(None)], limit=100_000) == 413
    assert read(packed, split(packed, range(0, len(packed), 1000)), limit=100_000) == 413
    assert read(gzip.compress(bytes(100_000)), [slice(None)], limit=100_000) == bytes(100_000)
    assert read(gzip.compress(bytes(100_001)), [slice(None)], limit=100_000) == 413


def test_what_comes_while_a_step_is_made_belongs_to_it(unpacker):
    noise = random.Random(7).randbytes(3_000_001)
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
    assert not inflater.step(2 * len(noise), output)
    inflater.feed(packed[3_000_000:])
    assert not inflater.step(2 * len(noise), output)
    assert bytes(output) == noise
    assert inflater.complete
    assert inflater.waiting == 0
    assert len(begun) == 6


@pytest.mark.slow
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
            while reader.received < AHEAD:
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
