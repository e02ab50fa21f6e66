"""What comes while a storage is left alone after a write shares the next one, in virtual time."""

import asyncio

from benchmarks.crashing.virtual import VirtualLoop
from fcp_core.aggregation.local import LocalEngine
from fcp_core.protocol.status import Code
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.store import TaskStore
from fcp_core.testing.engine_aggregators import AGGREGATORS
from fcp_plugins.storage_memory import MemoryStorage
from tests.services.test_streams import JOB, RECORD, blob


def test_what_comes_while_the_storage_is_left_alone_shares_the_next_write():
    class Slow(MemoryStorage):
        durable, takes = True, 0.01

        async def transact(self, body):
            await asyncio.sleep(self.takes)
            return await super().transact(body)

    async def main():
        loop, storage, answered, shared = asyncio.get_running_loop(), Slow(), {}, []
        await storage.transact(lambda tx: tx.put(RECORD))
        engine, store = LocalEngine(AGGREGATORS, workers=0), TaskStore(storage)
        engine.start()
        stored = await store.shards("t")
        fold = DurableFold("t", "task", lambda parts: engine.open(JOB, parts), store, stored)
        fold.on_progress(lambda ids: None, lambda count, size, seconds: shared.append(count))
        began = loop.time()

        async def contribute(number, when):
            await asyncio.sleep(when)
            await asyncio.wrap_future(fold.add(str(number), blob(number)))
            answered[number] = round(1000 * (loop.time() - began))

        # The second comes alone and does not wait; those that come at once after it do.
        times = (0, 0.05, 0.062, 0.068, 0.15)
        await asyncio.gather(*(contribute(*each) for each in enumerate(times)))
        assert (list(answered.values()), shared) == ([10, 60, 80, 80, 160], [1, 1, 2, 1])
        # However slow a storage is, it is not left alone for long.
        storage.takes, began = 1.0, loop.time()
        await asyncio.gather(contribute(5, 0.1), contribute(6, 1.105))
        assert (answered[5], answered[6]) == (1100, 2110)
        # An abort leaves nothing waiting.
        waiting = fold.add("7", blob(7))
        fold.abort()
        assert waiting.exception().code is Code.ABORTED
        engine.stop()

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
