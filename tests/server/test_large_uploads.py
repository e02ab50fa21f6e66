"""Large uploads wait for one another, but for no slow device."""

from __future__ import annotations

import asyncio
import gc
import time
from types import SimpleNamespace

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import calls, large_uploads, refusals
from fcp_core.server.http.buffers import GRAIN, Buffers
from fcp_core.server.http.large_uploads import LargeUploads
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.task_parts import LARGE

UPLOAD = "/upload/v1/media/known%2Fupload?upload_protocol=raw"
LONG = 600.0


def test_one_comes_after_the_other_in_order(monkeypatch):
    monkeypatch.setattr(large_uploads, "PATIENCE", LONG)
    kept, order = [0], []

    async def upload(held, name):
        await held.begin(LONG)
        assert held.coming == 1
        order.append(name)
        await asyncio.sleep(0)
        # It was received, and is not aggregated yet.
        kept[0] = LARGE
        held.end()
        await asyncio.sleep(0.1)
        assert held.coming == 0
        kept[0] = 0

    async def main():
        held = LargeUploads(lambda: kept[0])
        assert not held.awaited
        uploads = [asyncio.ensure_future(upload(held, name)) for name in range(3)]
        await asyncio.sleep(0)
        assert held.awaited
        await asyncio.gather(*uploads)
        assert not held.awaited

    asyncio.run(main())
    assert order == [0, 1, 2]


@pytest.mark.parametrize(("patience", "timeout"), [(0.0, LONG), (LONG, 0.0)])
def test_nobody_waits_for_a_slow_one(monkeypatch, patience, timeout):
    monkeypatch.setattr(large_uploads, "PATIENCE", patience)

    async def main():
        held = LargeUploads(lambda: 0)
        await held.begin(LONG)
        await asyncio.wait_for(held.begin(timeout), 30)
        assert held.coming == 2

    asyncio.run(main())


def test_who_gives_up_leaves_the_line(monkeypatch):
    monkeypatch.setattr(large_uploads, "PATIENCE", LONG)

    async def main():
        held = LargeUploads(lambda: 0)
        await held.begin(LONG)
        gone = asyncio.ensure_future(held.begin(LONG))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        assert not held.awaited
        held.end()
        await asyncio.wait_for(held.begin(LONG), 30)
        assert held.coming == 1

    asyncio.run(main())


def test_every_way_out_of_an_upload_ends_its_turn(make_front, http, monkeypatch):
    monkeypatch.setattr(calls, "LARGE", 1000)
    services = http.Services()
    services.media.names = {"known/upload"}
    front = make_front(services, max_body=4000, max_in_flight=100_000)
    media, held = services.media, front.frontend._context.large_uploads
    assert front.ask(http.head(UPLOAD, Content_Length=5000)).status == 413
    assert media.abandoned.acquire(timeout=http.WAIT)
    assert held.coming == 0
    with front.connect() as connection:  # which breaks
        connection.send(http.head(UPLOAD, Content_Length=2000), bytes(10))
        for _ in range(2):
            assert media.started.acquire(timeout=http.WAIT)
        assert held.coming == 1
    assert media.abandoned.acquire(timeout=http.WAIT)
    assert held.coming == 0
    services.media.wanted |= Wanted.LARGE
    for small, taken in ({"Content_Encoding": "gzip"}, 1), ({}, 0):
        with front.connect() as connection:  # which breaks too
            connection.send(http.head(UPLOAD, Content_Length=500, **small), bytes(10))
            assert media.started.acquire(timeout=http.WAIT)
            (request,) = front.frontend._context.busy
            while request.body is None and request.small is None:
                time.sleep(0.001)
            assert held.coming == taken, "how large it becomes is not announced"
        assert media.abandoned.acquire(timeout=http.WAIT)
        assert held.coming == 0
    assert front.ask(http.head(UPLOAD, Content_Length=2000) + bytes(2000)).status == 200
    assert held.coming == 0


def test_who_is_refused_after_it_has_gone_keeps_no_turn():
    """A device gave up while its upload waited for a turn, and then there is no room for it."""

    async def main():
        held = LargeUploads(lambda: 0)
        handler = calls.UploadHandler.__new__(calls.UploadHandler)
        handler.context = SimpleNamespace(large_uploads=held)
        handler.body, handler.over = None, True  # the connection was closed, and it abandoned
        await held.begin(LONG)
        handler._has_turn = True
        refusals.refuse(handler, StatusError(Code.UNAVAILABLE, "there is no room"))
        assert held.coming == 0

    asyncio.run(main())


@pytest.mark.slow
def test_the_memory_of_a_large_body_goes_to_the_one_that_waits():
    async def main(awaited):
        buffers = Buffers(8 * GRAIN, awaited=lambda: awaited)
        held = buffers.take(20 * GRAIN)
        block = held.obj.base
        where = id(getattr(block, "obj", block))
        del held, block
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        found = buffers._spare is not None and id(buffers._spare) == where
        again = buffers.take(19 * GRAIN)
        assert buffers._spare is None
        assert buffers.free == 0
        del again
        buffers.close()
        return found

    assert asyncio.run(main(awaited=True))
    assert not asyncio.run(main(awaited=False))
