"""What tests ask of a world of services."""

import asyncio


def stored(world, kind):
    return world.services._storage.transact(lambda tx: list(tx.select(kind)))


async def until(true):
    """Wait for what threads of the engine or of the storage do."""

    async def look():
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(look(), 30)
