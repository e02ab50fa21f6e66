"""Records that may be written a little later than they are made."""

from __future__ import annotations

import asyncio
import logging

from fcp_core.storage.contract import Record, Storage, Transaction

logger = logging.getLogger("fcp.services")


class Journal:
    """Writes session and token records behind the requests, many in one transaction.

    These records only tell a server that was restarted which late devices are its own. Losing the
    last of them in a crash costs such a device a longer wait, so no request waits for the disk; and
    a storage that does not outlive the process is not written to at all.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._batch: dict[tuple[type[Record], str], Record | None] = {}
        self._writer: asyncio.Task[None] | None = None

    def put(self, record: Record) -> None:
        """Write a record soon."""
        self._add(type(record), record.key, record)

    def delete(self, kind: type[Record], key: str) -> None:
        """Delete a record soon."""
        self._add(kind, key, None)

    async def flush(self) -> None:
        """Wait until everything is written."""
        if self._writer is not None:
            await self._writer

    def _add(self, kind: type[Record], key: str, record: Record | None) -> None:
        if not self._storage.durable:
            return
        self._batch[kind, key] = record
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._batch:
                batch, self._batch = self._batch, {}
                try:
                    await self._storage.transact(lambda tx, batch=batch: _apply(tx, batch))  # type: ignore[misc]
                except Exception:
                    logger.exception("%d session and token records were not written", len(batch))
        finally:
            self._writer = None


def _apply(tx: Transaction, batch: dict[tuple[type[Record], str], Record | None]) -> None:
    for (kind, key), record in batch.items():
        if record is None:
            tx.delete(kind, key)
        else:
            tx.put(record)
