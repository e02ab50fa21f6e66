"""Whose turn it is when there is little room for bodies: nobody has to look again and again."""

import asyncio

import pytest

from fcp_core.server.http import body_queue as module
from fcp_core.server.http.body import InFlight
from fcp_core.server.http.body_queue import PART, OneATurn
from fcp_core.server.http.calls import FOLDED
from tests.server.calls import UPLOAD

LIMIT = 10 * PART


@pytest.fixture(autouse=True)
def only_news(monkeypatch):
    """Whoever waits is told; to look by itself would take longer than any test."""
    monkeypatch.setattr(module, "PAUSE", 1e6)
    monkeypatch.setattr(module, "LIVELY", 1e6)


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def line(room, *sizes):
    """Have bodies of these sizes wait; return their tasks and the order in which they begin."""
    begun = []

    async def wait(number, size):
        await room.wait(size, 1e6)
        begun.append(number)
        if size:
            room.queue.goes_on(number, size)

    tasks = [asyncio.create_task(wait(number, size)) for number, size in enumerate(sizes)]
    await turns()
    return tasks, begun


def test_a_body_begins_when_there_is_room_for_what_the_others_lack():
    async def main():
        room = InFlight(LIMIT)
        assert room.queue.goes_on("first", 6 * PART)
        _, begun = await line(room, 4 * PART, PART, 5 * PART)
        assert begun == [0]  # the second would fill it, too: it is over the limit by that part
        room.queue.goes_on("first", 0)
        await turns()
        assert begun == [0, 1, 2]

    asyncio.run(main())


def test_what_is_released_is_told_to_the_next_in_line():
    async def main():
        waiting = [LIMIT]
        room = InFlight(LIMIT, waiting=lambda: waiting[0])
        _, begun = await line(room, PART, PART, 9 * PART)
        assert begun == []
        waiting[0] = 0
        room.look()
        await turns()
        assert begun == [0, 1]  # each told the next one
        room.queue.goes_on(0, 0)
        await turns()
        assert begun == [0, 1, 2]

    asyncio.run(main())


def test_a_body_that_has_begun_is_told_that_there_is_room():
    async def main():
        room = InFlight(LIMIT)
        room.force(LIMIT - PART)
        asked = []

        async def receive(name, missing):
            while not room.queue.goes_on(name, missing):
                await room.queue.pause(name)
            asked.append(name)

        assert room.queue.goes_on("least", PART)
        reading = [asyncio.create_task(receive(n, n * PART)) for n in (4, 2, 3)]
        await turns()
        assert asked == []
        room.queue.goes_on("least", 0)
        room.give_back(5 * PART)
        await asyncio.gather(*reading)
        assert asked == [2, 3, 4]  # who lacks least is first
        assert not room.queue.paused

    asyncio.run(main())


def test_one_that_sends_nothing_is_not_waited_for(monkeypatch):
    async def main():
        room = InFlight(LIMIT)
        assert room.queue.goes_on("stalls", LIMIT - PART)
        _, begun = await line(room, 5 * PART)
        assert begun == []
        monkeypatch.setattr(module, "LIVELY", 0.0)
        room.look()
        await turns()
        assert begun == [0]

    asyncio.run(main())


def test_it_is_told_when_more_waits_than_there_may_be():
    async def main():
        told = []
        room = InFlight(LIMIT, on_behind=told.append)
        room.force(LIMIT)
        _, begun = await line(room, 5 * PART, 5 * PART)
        assert told == []
        await line(room, 1)
        assert told == [True]
        room.give_back(LIMIT)
        await turns()
        assert told == [True, False]
        assert begun == [0, 1]

    asyncio.run(main())


def test_one_that_leaves_the_line_holds_up_nobody():
    async def main():
        room = InFlight(LIMIT)
        room.force(LIMIT - PART)
        (first, *_), begun = await line(room, 2 * PART, PART)
        first.cancel()
        await turns()
        assert first.cancelled()
        assert begun == [1]

    asyncio.run(main())


def test_what_takes_long_is_done_once_in_a_turn_of_the_loop():
    async def main():
        loop, folding = asyncio.get_running_loop(), OneATurn()
        turn, done = 0, []

        def count():
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        async def fold(name):
            await folding.wait()
            done.append((name, turn))

        count()
        tasks = [asyncio.create_task(fold(name)) for name in range(6)]
        await asyncio.sleep(0)
        tasks[2].cancel()  # while it waits
        while len(done) < 2:
            await asyncio.sleep(0)
        tasks[3].cancel()  # when its turn has come, or nearly so
        await asyncio.wait(tasks, timeout=30)
        again = asyncio.create_task(fold("later"))
        await asyncio.wait([again], timeout=30)
        return done

    done = asyncio.run(main())
    names, turns = zip(*done, strict=True)
    assert names == (0, 1, 4, 5, "later")
    assert len(set(turns)) == len(turns), "two in one turn"


def test_a_turn_that_is_not_used_is_passed_on():
    async def main():
        folding = OneATurn()
        first, second, third = (asyncio.create_task(folding.wait()) for _ in range(3))
        await first
        while not (folding._line and len(folding._line) == 1):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([third], timeout=30)
        return second.cancelled(), third.done()

    assert asyncio.run(main()) == (True, True)


def test_large_uploads_are_handed_over_one_in_a_turn(make_front, http, monkeypatch):
    asked = []

    class Folding:
        async def wait(self):
            asked.append(True)

    services = http.Services()
    services.media.names |= {"second"}
    front = make_front(services)
    front.frontend._context.folding = Folding()
    for name, size in (("known/upload", FOLDED), ("second", FOLDED - 1)):
        path = UPLOAD.replace("known/upload", name)
        with front.connect() as connection:
            request = http.head(path, Content_Length=size) + bytes(size)
            assert connection.send(request).reply().status == 200
    assert len(asked) == 1
