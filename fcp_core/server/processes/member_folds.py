"""What a member accumulates for an owner, over one link: as a worker does, and stored by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from fcp_core.aggregation.engine import Engine, FoldJob
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Signal
from fcp_core.server.processes.folds import WorkerFolds
from fcp_core.server.services.durable_fold import DurableFold
from fcp_core.server.services.store import TaskStore
from fcp_core.server.services.streams import OVER
from fcp_core.storage.shards import StoredShards


class _Written:
    """One stream.

    :ivar counts: what the owner said last of devices that were dropped, and that came too late.
    """

    def __init__(self) -> None:
        self.counts = (0, 0)
        self.fold: DurableFold


class MemberFolds(WorkerFolds):
    """Keeps uploads by number, accumulates them on request, and writes streams of shards.

    :param store: of this member.
    :param tell: tells the owner something of a stream, given its name: ``folded`` with the ids of
        contributions that are accumulated, and to be stored; ``committed`` after each write.
    """

    def __init__(
        self,
        engine: Engine,
        store: TaskStore,
        tell: Callable[..., None],
        freed: Signal | None = None,
    ) -> None:
        super().__init__(engine, freed)
        self._store, self._tell = store, tell
        self._written: dict[str, _Written] = {}
        #: The bytes of contributions that are being accumulated.
        self._sizes: dict[str, int] = {}

    def clear(self) -> None:
        """Drop everything, but what is stored."""
        super().clear()
        written, self._written = self._written, {}
        for each in written.values():
            each.fold.abort()

    async def open_stream(
        self, stream: str, task_id: str, name: str, epoch: int, job: dict[str, Any]
    ) -> None:
        """Begin to write a stream.

        :param task_id: of whose shards.
        :param name: the task's.
        :param epoch: of the owner's lease: what is written after the next one began has no effect.
        """
        made, whole = _Written(), msgspec.convert(job, FoldJob)
        made.fold = DurableFold(
            task_id,
            name,
            lambda partials: self._engine.open(whole, partials),
            self._store.under(epoch),
            StoredShards(),
            lambda: made.counts,
            stream,
        )

        def folded(contributions: Sequence[str]) -> None:
            for each in contributions:
                self._forget(each)
            self._tell(stream, "folded", contributions)

        made.fold.on_progress(folded, partial(self._tell, stream, "committed"))
        self._written[stream] = made

    async def contribute(
        self, stream: str, contribution: str, number: int, dropped: int, surplus: int
    ) -> None:
        """Accumulate an upload, forget it, and return when what came of it is stored.

        :raises StatusError: as ``Fold.add``; with :data:`OVER` if the stream takes nothing more,
            and it may be stored all the same.
        """
        body = self._bodies.pop(number, None)
        if body is None:
            raise StatusError(Code.ABORTED, "this upload was dropped; check in again")
        found = self._written.get(stream)
        self._sizes[contribution] = len(body)
        try:
            if found is None:
                raise StatusError(Code.ABORTED, "the aggregation was aborted", http=OVER)
            found.counts = (dropped, surplus)
            future = found.fold.add(contribution, body)
            del body
            await asyncio.wrap_future(future)
        except StatusError as error:
            if found is not None and found.fold.closed:
                raise StatusError(error.code, error.message, http=OVER) from None
            raise
        finally:
            self._forget(contribution)

    async def drop_stream(self, stream: str) -> None:
        """Let go of a stream, if it is still there."""
        found = self._written.pop(stream, None)
        if found is not None:
            found.fold.abort()

    def _forget(self, contribution: str) -> None:
        """Note that the bytes of a contribution are not needed any more."""
        size = self._sizes.pop(contribution, 0)
        if size:
            self._release(size)
