"""The uploads that a worker received, and the accumulators that they go into."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

from fcp_core.aggregation.engine import Engine, Fold, FoldJob
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Signal

Blob: TypeAlias = bytes | bytearray | memoryview

#: How many bytes of a partial aggregate are sent at a time.
PIECE = 1 << 20
#: The calls that are begun in the order in which they come, before others.
PROMPT = ("fold", "open_fold", "drop_fold", "drop_body", "partial", "piece")


class WorkerFolds:
    """Keeps uploads by number, and accumulates them on request.

    The public coroutines are what the process that decides may call.

    :ivar held: how many bytes of uploads wait here or are being folded.
    :param freed: announced whenever they have become fewer.
    """

    def __init__(self, engine: Engine, freed: Signal | None = None) -> None:
        self._engine = engine
        self.freed = Signal() if freed is None else freed
        self._numbers = itertools.count(1)
        self._bodies: dict[int, Blob] = {}
        self._folds: dict[int, Fold] = {}
        self._partials: dict[int, memoryview] = {}
        self.held = 0

    def calls(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return what the other process may call, by name."""
        return {
            "fold": self.fold,
            "open_fold": self.open_fold,
            "drop_fold": self.drop_fold,
            "drop_body": self.drop_body,
            "read_body": self.read_body,
            "partial": self.partial,
            "piece": self.piece,
        }

    def clear(self) -> None:
        """Drop everything: nobody can ask for it any more."""
        size = sum(map(len, self._bodies.values()))
        self._bodies.clear()
        self._partials.clear()
        self._release(size)
        folds, self._folds = self._folds, {}
        for fold in folds.values():
            fold.abort()

    def keep(self, body: Blob) -> int:
        """Keep an upload; return its number."""
        number = next(self._numbers)
        self._bodies[number] = body
        self.held += len(body)
        return number

    async def drop_body(self, number: int) -> None:
        """Forget an upload, if it is still there."""
        body = self._bodies.pop(number, None)
        if body is not None:
            self._release(len(body))

    async def read_body(self, number: int, start: int) -> memoryview:
        """Return a piece of an upload.

        :raises StatusError: ABORTED if it is not there any more.
        """
        body = self._bodies.get(number)
        if body is None:
            raise StatusError(Code.ABORTED, "this upload was dropped; check in again")
        return memoryview(body)[start : start + PIECE]

    async def open_fold(self, fold: int, job: dict[str, Any]) -> None:
        """Begin a share of a fold."""
        self._folds[fold] = self._engine.open(msgspec.convert(job, FoldJob))

    async def fold(self, fold: int, contribution: str, number: int) -> None:
        """Fold an upload, and forget it.

        :raises StatusError: as ``Fold.add``.
        """
        body = self._bodies.pop(number, None)
        if body is None:
            raise StatusError(Code.ABORTED, "this upload was dropped; check in again")
        size = len(body)
        try:
            future = self._find(fold).add(contribution, body)
            del body
            await asyncio.wrap_future(future)
        finally:
            self._release(size)

    async def partial(self, fold: int) -> tuple[int, tuple[str, ...]]:
        """Serialize the partial aggregate; return its size and its contributions."""
        partial = await asyncio.wrap_future(self._find(fold).partial())
        self._partials[fold] = memoryview(partial.data)
        return len(partial.data), partial.contributions

    async def piece(self, fold: int, start: int) -> memoryview:
        """Return a piece of the partial aggregate: a large frame would delay all others."""
        data = self._partials.get(fold, memoryview(b""))
        if start + PIECE >= len(data):
            self._partials.pop(fold, None)
        return data[start : start + PIECE]

    async def drop_fold(self, fold: int) -> None:
        """Drop a share of a fold, if it is still there."""
        self._partials.pop(fold, None)
        found = self._folds.pop(fold, None)
        if found is not None:
            found.abort()

    def _release(self, size: int) -> None:
        self.held -= size
        self.freed()

    def _find(self, fold: int) -> Fold:
        found = self._folds.get(fold)
        if found is None:
            raise StatusError(Code.ABORTED, "the aggregation was aborted")
        return found
