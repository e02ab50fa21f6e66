"""Heavy work of an aggregation protocol, which the engine does."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from fcp_aggregators.simple_protocol import SimpleProtocol
from fcp_core.aggregation.engine import EngineFactory
from fcp_core.aggregation.local import LocalEngine
from fcp_core.plugins import hookimpl
from fcp_core.rounds.protocols import (
    Work,
)
from tests.services.faulty_protocols import Plugin, world
from tests.services.worlds import until


def test_work_that_fails_comes_back_as_an_error(kit):
    found = []

    class Working(SimpleProtocol):
        def start(self, task, now):
            return [Work("good", "zlib:compress", b"a"), Work("bad", "no.such:thing", b"")]

        def worked(self, key, result, now):
            found.append((key, type(result).__name__))
            raise ZeroDivisionError

    async def main():
        async with world(kit, Working) as one:
            task = await one.submit(goal=1)
            await until(lambda: len(found) == 2)
            assert sorted(found, reverse=True) == [("good", "bytes"), ("bad", "StatusError")]
            await one.device().run()
            assert await one.result(task) == [1, 1]

    asyncio.run(main())


def test_work_is_cancelled_when_its_task_ends(kit):
    jobs = []

    class Working(SimpleProtocol):
        def start(self, task, now):
            return [Work("slow", "zlib:compress", b"a")]

    class Slow(LocalEngine):
        def run(self, function, arguments):
            jobs.append(Future())
            return jobs[-1]

    class Both(Plugin):
        @hookimpl
        def fcp_register_engines(self):
            return [EngineFactory("slow", "works for ever", lambda made, options: Slow(made, 0))]

    async def main():
        async with world(kit, Both(Working), engine="slow") as one:
            task = await one.submit(goal=1)
            await one.services.tasks.cancel(task)
            assert jobs.pop().cancelled()
            # One that stops leaves none behind either.
            await one.submit(goal=1)
            assert not jobs[0].done()
        assert jobs[0].cancelled()

    asyncio.run(main())
