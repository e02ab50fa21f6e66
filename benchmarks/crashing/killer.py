"""A plugin that kills its own process at steps of a release, one after another, as a file says.

The file that ``CRASH_STEPS`` names has a step a line; the first is taken out before the kill. What
was drawn is written to the file that ``CRASH_DRAWS`` names, a line of task and digest each.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config
from fcp_core.server.services.releases import TaskRelease
from fcp_core.server.services.store import TaskStore

#: In the order in which a release comes to them.
STEPS = (
    "before the draw",
    "after the draw",
    "before the transaction",
    "before its commit",
    "after its commit",
    "before the watermark",
    "after the watermark",
)


def reached(step: str) -> None:
    """Die, if it is the step's turn."""
    path = Path(os.environ["CRASH_STEPS"])
    first, _, rest = path.read_text().partition("\n")
    if first == step:
        new = path.with_suffix(".new")
        new.write_text(rest)
        os.replace(new, path)
        os.kill(os.getpid(), signal.SIGKILL)


_draw, _end, _booked = TaskRelease.draw, TaskStore.end, TaskRelease.booked


async def draw(self: TaskRelease, *given: Any) -> bytes:
    """Draw, and write down what was drawn."""
    reached(STEPS[0])
    result = await _draw(self, *given)
    with open(os.environ["CRASH_DRAWS"], "a") as file:
        file.write(f"{self.planned.spec.name} {hashlib.sha256(result).hexdigest()}\n")
    reached(STEPS[1])
    return result


async def end(self: TaskStore, record: Any, result: Any, booking: Any = None) -> Any:
    """End a task; the storage is watched for the time of the transaction."""
    transact = self._storage.transact

    async def watched(body: Callable[[Any], Any]) -> Any:
        def whole(tx: Any) -> Any:
            done = body(tx)
            reached(STEPS[3])
            return done

        return await transact(whole)

    reached(STEPS[2])
    self._storage.transact = watched  # type: ignore[method-assign]
    try:
        return await _end(self, record, result, booking)
    finally:
        self._storage.transact = transact  # type: ignore[method-assign]
        reached(STEPS[4])


def booked(self: TaskRelease, accounts: Any) -> dict[str, float]:
    """Tell the ledgers."""
    reached(STEPS[5])
    figures = _booked(self, accounts)
    reached(STEPS[6])
    return figures


@hookimpl
def fcp_startup(config: Config) -> None:
    """Be in the way of all releases of the server that starts."""
    TaskRelease.draw = draw  # type: ignore[method-assign]
    TaskStore.end = end  # type: ignore[method-assign]
    TaskRelease.booked = booked  # type: ignore[method-assign]
