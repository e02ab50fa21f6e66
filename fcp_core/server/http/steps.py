"""Runs coroutines without a turn of the event loop, as far as they need not wait."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def run_now(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Run *work* until it waits; return what is left of it, or None if it has ended.

    Most calls need not wait, and a task of their own would cost them two turns of the loop. What
    runs here has no task: ``asyncio.current_task`` returns None.

    :raises BaseException: whatever *work* raises.
    """
    task = asyncio.current_task()
    if task is not None:
        loop = task.get_loop()
        asyncio.tasks._leave_task(loop, task)
    try:
        waited = work.send(None)
    except StopIteration:
        return None
    finally:
        if task is not None:
            asyncio.tasks._enter_task(loop, task)
    return _rest(work, waited)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waited: Any) -> Generator[Any, Any, None]:
    """Go on with what was begun and waits."""
    try:
        while True:
            try:
                result = yield waited
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                waited = work.throw(error)
            else:
                waited = work.send(result)
    except StopIteration:
        return
