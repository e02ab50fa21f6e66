"""What processes say to each other: frames, calls, answers, and the end of either side."""

import asyncio
import inspect
import logging
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.processes import link as module
from fcp_core.server.processes.link import FrameReader, Link, encode_frame

WAIT = 30.0

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.tuples(st.integers(-(2**31), 2**31), VALUES, VALUES)


@settings(max_examples=40)
@given(st.lists(FRAMES, max_size=5), st.data())
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames, data):
    stream = b"".join(encode_frame(*frame) for frame in frames)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    reader = FrameReader()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert found == [list(frame) for frame in frames]


@pytest.mark.parametrize("data", [b"\0\0\0\1\xc1", b"\0\0\0\1\x01", b"\0\0\0\3\x92\x01\x02"])
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(ValueError, match=r"no frame|MessagePack"):
        FrameReader().feed(data)


def test_what_cannot_be_sent_is_refused(monkeypatch):
    assert encode_frame(1, "x", [Path("/tmp/a"), {"a": (1, 2)}])
    with pytest.raises(TypeError, match="complex cannot be sent"):
        encode_frame(1, "x", 1j)
    monkeypatch.setattr(module, "MAX_FRAME", 100)
    with pytest.raises(ValueError, match="too long"):
        encode_frame(1, "x", b"x" * 101)


class Side:
    """One process's end, with calls that the tests make."""

    def __init__(self, prompt):
        self.lost = asyncio.Event()
        self.heard = []
        self.go_on = asyncio.Event()
        self.link = Link(
            {"echo": self._echo, "wait": self._wait, "refuse": self._refuse, "break": self._break},
            self.lost.set,
            prompt,
        )

    async def _echo(self, *values):
        self.heard.append(values)
        return values

    async def _wait(self, value):
        await self.go_on.wait()
        return value

    async def _refuse(self, code, http):
        raise StatusError(Code(code), "not like this", http=http)

    async def _break(self):
        raise RuntimeError("a secret")


@asynccontextmanager
async def two_sides(prompt):
    ends = socket.socketpair()
    sides = [Side(prompt), Side(prompt)]
    loop = asyncio.get_running_loop()
    for side, end in zip(sides, ends, strict=True):
        await loop.create_unix_connection(lambda side=side: side.link, sock=end)
    yield sides
    for side in sides:
        side.link.close()
        await side.lost.wait()


@pytest.fixture(params=[(), ("echo", "wait", "refuse", "break")], ids=["in tasks", "promptly"])
def run(request):
    """Runs a test's coroutine with both sides, whose handlers begin in a task or before."""

    async def limited(work):
        async with two_sides(request.param) as sides:
            await asyncio.wait_for(work(*sides), WAIT)

    return lambda work: asyncio.run(limited(work))


def test_calls_go_both_ways_and_overtake_each_other(run):
    async def work(here, there):
        slow = asyncio.ensure_future(here.link.call("wait", "slow"))
        back = asyncio.ensure_future(there.link.call("wait", "back"))
        assert await here.link.call("echo", b"x" * (1 << 20), None) == [b"x" * (1 << 20), None]
        assert not slow.done()
        here.go_on.set()
        there.go_on.set()
        assert await asyncio.gather(slow, back) == ["slow", "back"]
        # What is told arrives before what is asked afterwards.
        for number in range(100):
            here.link.tell("echo", number)
        await here.link.call("echo", "last")
        assert [values[0] for values in there.heard[1:]] == [*range(100), "last"]

    run(work)


def test_errors_arrive_and_leak_nothing(run, caplog):
    async def work(here, there):
        for code, http in ((Code.ABORTED, 409), (Code.INVALID_ARGUMENT, 413)):
            with pytest.raises(StatusError, match="not like this") as refused:
                await here.link.call("refuse", int(code), http)
            assert (refused.value.code, refused.value.http) == (code, http)
        with caplog.at_level(logging.CRITICAL), pytest.raises(StatusError) as broken:
            await here.link.call("break")
        assert broken.value.code is Code.INTERNAL
        assert "secret" not in broken.value.message
        assert await here.link.call("echo") == []

    run(work)


def test_the_end_of_the_other_side_fails_what_waits_for_it(run):
    async def work(here, there):
        waiting = asyncio.ensure_future(here.link.call("wait", 1))
        await here.link.call("echo")
        there.link.close()
        with pytest.raises(StatusError) as gone:
            await waiting
        assert gone.value.code is Code.UNAVAILABLE
        await here.lost.wait()
        with pytest.raises(StatusError):
            await here.link.call("echo")
        here.link.tell("echo")  # in vain

    run(work)


def test_a_call_that_nobody_waits_for_any_more_does_no_harm(run):
    async def work(here, there):
        waiting = asyncio.ensure_future(here.link.call("wait", 1))
        await here.link.call("echo")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        there.go_on.set()
        assert await here.link.call("echo", 2) == [2]

    run(work)


def test_a_side_that_hangs_up_gives_up_what_it_was_asked(run):
    async def work(here, there):
        waiting = asyncio.ensure_future(here.link.call("wait", 1))
        await here.link.call("echo")
        tasks = set(there.link._tasks)
        assert len(tasks) == 1
        there.link.close()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        await asyncio.gather(waiting, return_exceptions=True)

    run(work)


def test_nonsense_ends_the_link(run):
    async def work(here, there):
        there.link._transport.write(b"\0\0\0\1\x01")
        await here.lost.wait()
        await there.lost.wait()

    logging.disable(logging.CRITICAL)
    try:
        run(work)
    finally:
        logging.disable(logging.NOTSET)


def test_tasks_are_made_of_coroutines_only(run):
    # From Python 3.12 on asyncio takes nothing else.
    made = []

    def make(loop, work, **more):
        made.append(work)
        return asyncio.Task(work, loop=loop, **more)

    async def work(here, there):
        asyncio.get_running_loop().set_task_factory(make)
        asking = asyncio.ensure_future(here.link.call("wait", 7))
        await here.link.call("echo")
        there.go_on.set()
        assert await asking == 7
        assert all(inspect.iscoroutine(work) for work in made)

    run(work)


def test_a_side_that_says_nothing_is_given_up_and_heard_again(run):
    async def work(here, there):
        waiting = asyncio.ensure_future(here.link.call("wait", 1))
        watching = asyncio.ensure_future(here.link.watch(0.01, 0.05, here.link.give_up))
        with pytest.raises(StatusError) as gone:
            await waiting
        assert gone.value.code is Code.UNAVAILABLE
        watching.cancel()
        # The link goes on: an answer that comes late is nobody's.
        there.go_on.set()
        assert await here.link.call("echo", 2) == [2]
        # Who is heard is not given up; the time does not matter, but that each beat says so.
        here.link.silence = 7
        both = asyncio.ensure_future(there.link.watch(0.01, 1000, pytest.fail))
        while here.link.silence:
            await asyncio.sleep(0.01)
        both.cancel()

    run(work)
