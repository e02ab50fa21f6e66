"""The memory that large bodies are read into, and when it comes back."""

from __future__ import annotations

import asyncio
import gzip
import os
import queue
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tornado.iostream import StreamClosedError

from fcp_core.protocol.blocks import FileBlock, block_of
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.http import inflate
from fcp_core.server.http.body import WRITTEN, BodyReader, InFlight
from fcp_core.server.http.buffers import GRAIN, IDLE, STEP, Buffers
from fcp_core.server.http.inflate import GzipReader
from fcp_core.server.http.limits import Limits

#: Decompressed bytes that are made in one go.
SMALL = 256 << 10


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


class Sender:
    """What a connection gives, in parts of odd sizes."""

    def __init__(self, data):
        self.data = data

    def closed(self):
        return False

    async def read_into(self, piece, partial):
        size = min(len(piece), len(self.data), 70_001)
        piece[:size], self.data = self.data[:size], self.data[size:]
        return size


@pytest.mark.parametrize("full", [False, True])
def test_a_large_body_lies_in_a_file_if_there_is_room(tmp_path, monkeypatch, full):
    if full:

        def refuse(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    data = np.random.default_rng(0).bytes(3 * WRITTEN + 12_345)
    limits = Limits(max_body=len(data))

    async def receive(pool, kept, in_file=True):
        buffers = Buffers(kept, folder=tmp_path)
        reader = BodyReader(len(data), limits, InFlight(len(data)), pool, buffers, in_file=in_file)
        await reader.receive_from(Sender(data))
        body = await reader.finish()
        reader.close()
        buffers.close()
        return body

    async def main():
        with ThreadPoolExecutor(1) as pool:
            large, small = await receive(pool, len(data) - 1), await receive(pool, len(data))
            return large, small, await receive(pool, len(data) - 1, in_file=False)

    large, small, private = asyncio.run(main())
    assert large == small == private == data
    assert isinstance(block_of(large), FileBlock) is not full
    assert not isinstance(block_of(small), FileBlock)
    assert not isinstance(block_of(private), FileBlock)
    assert not large.readonly, "the fold may keep it"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kept", [SMALL // 4, 2 * SMALL], ids=["from the beginning", "later"])
@pytest.mark.parametrize("files", [None, 0, 1], ids=["room", "no room", "too little room"])
def test_a_compressed_body_that_becomes_large_lies_in_a_file_if_there_is_room(
    tmp_path, monkeypatch, kept, files
):
    fallocate, calls = os.posix_fallocate, []

    def allocate(*given):
        calls.append(given)
        if files is not None and len(calls) > files:
            raise OSError(28, "No space left on device")
        fallocate(*given)

    async def move(output, *given):
        moves.append(given)
        await moved(output, *given)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(inflate, "STEP", SMALL)
    moved, moves = inflate.Output._move, []
    monkeypatch.setattr(inflate.Output, "_move", move)
    data = np.random.default_rng(0).bytes(SMALL) * 4 + b"end"
    packed = gzip.compress(data, 1)
    # In memory, it would be moved there at least once.
    packed = packed if kept < SMALL else gzip.compress(bytes(4 * SMALL) + b"end", 1)
    data = gzip.decompress(packed)

    async def receive(pool, in_file=True):
        buffers = Buffers(kept, folder=tmp_path)
        rest = (Limits(), InFlight(1 << 30), pool, buffers)
        reader = GzipReader(len(packed), *rest, in_file=in_file)
        await reader.receive_from(Sender(packed))
        body = await reader.finish()
        reader.close()
        buffers.close()
        return body

    async def main():
        with ThreadPoolExecutor(1) as pool:
            return await receive(pool), await receive(pool, in_file=False)

    large, private = asyncio.run(main())
    assert large == private == data
    assert kept > SMALL or len(moves) == (files is not None), "it may be moved once"
    assert isinstance(block_of(large), FileBlock) is (files is None)
    assert not isinstance(block_of(private), FileBlock)
    assert not large.readonly, "the fold may keep it"
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("wrong", [b"", b"no gzip"])
def test_the_file_of_a_body_that_does_not_become_complete_goes(tmp_path, monkeypatch, wrong):
    for what in ("STEP", "PIECES"):
        monkeypatch.setattr(inflate, what, SMALL)
    packed = gzip.compress(np.random.default_rng(0).bytes(8 * SMALL), 1) + wrong
    buffers = Buffers(SMALL, folder=tmp_path)

    class Broken(Sender):
        """Breaks before the last bytes, once there is a file."""

        async def read_into(self, piece, partial):
            if not wrong and len(self.data) < SMALL:
                while reader._output._file is None:
                    await asyncio.sleep(0.001)
                raise StreamClosedError
            return await super().read_into(piece, partial)

    async def main(pool):
        nonlocal reader
        rest = (Limits(), InFlight(1 << 30), pool, buffers)
        reader = GzipReader(len(packed), *rest, in_file=True)
        with pytest.raises((StatusError, StreamClosedError)):
            await reader.receive_from(Broken(packed))
        file = reader._output._file
        reader.close()
        return file

    reader = None
    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(main(pool))._file.closed
    buffers.close()


class Patient(Sender):
    """Gives the next part once nothing is decompressed any more."""

    async def read_into(self, piece, partial):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)
        return await super().read_into(piece, partial)


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNAVAILABLE])
def test_nothing_is_taken_behind_what_could_not_be(tmp_path, monkeypatch, code):
    """What is no gzip, or was not written, is no gap in a body that is taken for whole."""
    write, calls = inflate.write_to, []

    def fail_once(*given):
        calls.append(given)
        if code is Code.UNAVAILABLE and len(calls) == 1:
            raise StatusError(code, "the body could not be written to a file")
        write(*given)

    monkeypatch.setattr(inflate, "write_to", fail_once)
    monkeypatch.setattr(inflate, "STEP", SMALL // 8)
    packed = gzip.compress(np.random.default_rng(0).bytes(2 * SMALL), 1)
    if code is Code.INVALID_ARGUMENT:
        packed = bytes(70_001) + packed  # as much as comes at once

    async def main(pool):
        buffers = Buffers(SMALL, folder=tmp_path)
        rest = (Limits(), InFlight(1 << 30), pool, buffers)
        reader = GzipReader(len(packed), *rest, in_file=True)
        try:
            await reader.receive_from(Patient(packed))
            await reader.finish()
        finally:
            reader.close()
            buffers.close()

    with ThreadPoolExecutor(1) as pool, pytest.raises(StatusError) as error:
        asyncio.run(main(pool))
    assert error.value.code is code
