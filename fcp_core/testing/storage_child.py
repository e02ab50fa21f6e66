"""What the storage kit runs in processes of their own."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from fcp_core.storage.contract import Storage, Transaction
from fcp_core.testing.storage_records import (
    Item,
    OtherItem,
)

COUNTS = 100


def run_child() -> None:
    """Run one of the kit's processes; its arguments are a factory, what to do, and the path."""
    factory, what, path = sys.argv[1:]
    module, _, name = factory.partition(":")
    storage: Storage = getattr(__import__(module, fromlist=[name]), name)(Path(path))
    asyncio.run({"write": _write, "count": _count}[what](storage))


async def _write(storage: Storage) -> None:
    """Write pairs for ever, and print each when it is answered."""
    await storage.start()
    numbers = itertools.count()

    async def loop() -> None:
        for number in numbers:
            name = str(number)
            await storage.transact(
                lambda tx, name=name: (  # type: ignore[misc]
                    tx.put(Item(name, data=bytes(2000))),
                    tx.put(OtherItem(name, data=bytes(2000))),
                )
            )
            print(name, flush=True)

    await asyncio.gather(*(loop() for _ in range(8)))


async def _count(storage: Storage) -> None:
    """Count up a shared counter."""

    def body(tx: Transaction) -> None:
        item = tx.get(Item, "counter") or Item("counter")
        tx.put(Item("counter", size=item.size + 1))

    def wait_for_parent() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    wait_for_parent()
    await storage.start()
    wait_for_parent()
    for _ in range(COUNTS):
        await storage.transact(body)
    await storage.stop()
