"""Plugins that break, and what is said of it."""

import asyncio
import sys

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.tasks import TaskState

DEADLINE = 600


def offering(hook, *factories):
    """Return a plugin that registers some factories."""

    class Plugin:
        pass

    def function():
        return list(factories)

    function.__name__ = hook
    setattr(Plugin, hook, staticmethod(hookimpl(function)))
    return Plugin()


def raises(*_):
    raise RuntimeError("planted")


def exits(*_):
    sys.exit("planted")


def interrupts(*_):
    raise KeyboardInterrupt("planted")


def cancels(*_):
    raise asyncio.CancelledError("planted")


class Unreadable(Exception):
    def __str__(self):
        return self.args[7]


def raises_unreadable(*_):
    raise Unreadable


async def failed(world, task, code, *parts):
    """Check how a task has failed, and that nothing is left of it."""
    with pytest.raises(StatusError) as caught:
        await asyncio.wait_for(world.services.tasks.wait(task), 30)
    assert caught.value.code is code
    for part in parts:
        assert part in caught.value.message
    status = await world.status(task)
    assert (status.state, status.pending) == (TaskState.FAILED, 0)
    assert not world.services.media._memory.held  # nothing of the uploads is held
