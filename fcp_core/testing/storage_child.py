"""What the storage kit runs in processes of their own."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
import time
from pathlib import Path
from typing import IO

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
    asyncio.run({"write": _write, "count": _count, "claim": _claim, "stick": _stick}[what](storage))


def tell(stream: IO[str] | None, line: str) -> None:
    """Write a line to a process."""
    assert stream is not None
    stream.write(f"{line}\n")
    stream.flush()


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


async def _claim(storage: Storage) -> None:
    """Write something unless another process has: how, what, and who this is stand in a line."""
    await storage.start()
    print("ready", flush=True)
    while words := (await asyncio.to_thread(sys.stdin.readline)).split():
        how, number, me = words
        body = functools.partial(_try_claim, how=how, number=number, me=me)
        wrote = await storage.transact(body)
        print("wrote" if wrote else "held back", flush=True)
    await storage.stop()


def _try_claim(tx: Transaction, how: str, number: str, me: str) -> bool:
    other = {"0": "1", "1": "0"}[me]
    mine, theirs, group = f"{how}-{number}-{me}", f"{how}-{number}-{other}", f"{how}-{number}"
    if how == "selected":
        free = not list(tx.select(Item, group=group))
    else:
        found = tx.get(Item, theirs)
        free = found is None if how == "absent" else found is not None and found.size == 1
    time.sleep(0.003)  # So that the other process does the same at the same time.
    if free:
        tx.put(Item(mine, group=group, size=0))
    return free


async def _stick(storage: Storage) -> None:
    """Begin a transaction and never end it."""

    def body(tx: Transaction) -> None:
        tx.get(Item, "mine")
        tx.put(Item("theirs"))
        print("in the middle", flush=True)
        time.sleep(3600)

    await storage.start()
    await storage.transact(body)
