"""Carries out a device session in a coroutine: for load generators, fuzzers and tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fcp_core.client.steps import Concurrently, SessionStep, Steps
from fcp_core.protocol.status import StatusError

T = TypeVar("T")

#: Carries out one step, but :class:`Concurrently`, and returns its answer.
Perform = Callable[[SessionStep], Awaitable[Any]]


async def drive(part: Steps[T], perform: Perform) -> T:
    """Carry out a session, or a part of one.

    What happens at the same time on a device is carried out one after another here, in its order:
    a virtual device has one connection, and a test the same order each time.

    :param perform: called with each step. What it raises but a ``StatusError`` ends the session.
    :raises StatusError: if the part does not catch the error of a step.
    """
    try:
        step = next(part)
        while True:
            try:
                if isinstance(step, Concurrently):
                    answer: Any = await _drive_all(step.parts, perform)
                else:
                    answer = await perform(step)
            except StatusError as error:
                step = part.throw(error)
            else:
                step = part.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def _drive_all(parts: Sequence[Steps[Any]], perform: Perform) -> list[Any]:
    answers = []
    first: StatusError | None = None
    for part in parts:
        try:
            answers.append(await drive(part, perform))
        except StatusError as error:
            first = first or error
    if first is not None:
        raise first
    return answers
