"""SQLite files, as the tests begin and end them."""

import asyncio

from fcp_core.testing.storage import Item
from fcp_plugins.storage_sqlite import SqliteStorage


def start_and_stop(path, **options):
    async def main():
        storage = SqliteStorage(path, **options)
        await storage.start()
        await storage.stop()

    asyncio.run(main())


def put(path, *names):
    async def main():
        storage = SqliteStorage(path)
        await storage.start()
        await storage.transact(lambda tx: [tx.put(Item(name)) for name in names])
        await storage.stop()

    asyncio.run(main())
