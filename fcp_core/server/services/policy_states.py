"""Stores the states of selection policies, so that a limit over a day outlives a restart."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from fcp_core.errors import describe, plugin_errors
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Clock
from fcp_core.server.services.writes import Writes
from fcp_core.storage.contract import Storage, Transaction
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import PolicyStateRecord
from fcp_core.storage.shards import Fence, FenceMaker, unfenced

logger = logging.getLogger("fcp.services")

#: Seconds after which a state that was not written again is forgotten.
LIFETIME = 30 * 86400.0
#: How many seconds a server that stops, or gives a population back, waits for the last of them.
FLUSHING = 5.0


class PolicyStates:
    """Reads and writes the states of policies; each belongs to a population and a group of tasks.

    They are written behind the decisions, many in one transaction: a crash can lose the last of
    them. A storage that does not outlive the process is not written to at all.

    :param writes: has them tried again until they are written.
    :param fence: makes what raises, in the transaction that writes, if a population is another
        member's.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        writes: Writes,
        fence: FenceMaker = unfenced,
    ) -> None:
        self._storage = storage
        self._writes = writes
        self._fence = fence
        self._clock = clock
        self._loaded: dict[str, bytes] = {}
        self._batch: dict[str, PolicyStateRecord | None] = {}
        self._writer: asyncio.Task[None] | None = None

    def load(self, records: Iterable[PolicyStateRecord]) -> None:
        """Restore what an earlier run left; what is too old is deleted."""
        oldest = self._clock.now() - LIFETIME
        for record in records:
            if record.saved < oldest:
                self._write_soon(record.key, None)
            else:
                self._loaded[record.key] = record.state

    def get(self, population: str, group: str) -> Any:
        """Return what an earlier run's policy kept; None if nothing."""
        state = self._loaded.pop(_key(population, group), None)
        return None if state is None else msgspec.json.decode(state)

    def put(self, population: str, group: str, policy: str, state: Any) -> None:
        """Write a state soon.

        :param policy: its name, for the log.
        """
        try:
            data = msgspec.json.encode(state)
        except plugin_errors() as error:  # A policy may keep anything.
            what = f"population {population}: what selection policy {policy} keeps"
            logger.error("%s is no JSON: %s", what, describe(error))
            return
        key = _key(population, group)
        self._write_soon(key, PolicyStateRecord(key, population, data, self._clock.now()))

    async def flush(self) -> None:
        """Wait until everything is written, but not for a storage that does not answer."""
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=FLUSHING)

    async def stop(self) -> None:
        """Flush, and give up what the storage does not take."""
        await self.flush()
        if self._writer is not None:
            logger.warning("%d states of selection policies were not written", len(self._batch))
            self._writer.cancel()

    def _write_soon(self, key: str, record: PolicyStateRecord | None) -> None:
        if not self._storage.durable:
            return
        self._batch[key] = record
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._batch:
                await self._writes.until_done("what selection policies keep", self._attempt)
        finally:
            self._writer = None

    async def _attempt(self) -> None:
        """Write the newest of each."""
        batch = dict(self._batch)
        try:
            await self._storage.transact(partial(_apply, batch=batch, fence=self._fence()))
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                raise
            logger.exception("%d states of selection policies were not written", len(batch))
        for key, record in batch.items():
            if self._batch[key] is record:
                del self._batch[key]


def _apply(
    tx: Transaction,
    batch: dict[str, PolicyStateRecord | None],
    fence: Fence,
) -> None:
    for key, record in batch.items():
        if record is None:
            tx.delete(PolicyStateRecord, key)
            continue
        # Whoever owns another population keeps its own.
        with contextlib.suppress(LeaseLostError):
            fence(tx, record.population)
            tx.put(record)


def _key(population: str, group: str) -> str:
    return hashlib.sha256(f"{population}\0{group}".encode()).hexdigest()
