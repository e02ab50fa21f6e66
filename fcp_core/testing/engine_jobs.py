"""The pure jobs that the engine kit has run; any process can import them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fcp_core.protocol.status import Code, StatusError

#: How long a job waits for its kit, in seconds.
_LIMIT = 120.0


def double(arguments: bytes) -> bytes:
    """Return the arguments twice."""
    return arguments + arguments


def where(arguments: bytes) -> bytes:
    """Return the id of the process."""
    return str(os.getpid()).encode()


def refuse(arguments: bytes) -> bytes:
    """Raise an error with the arguments in it."""
    raise StatusError(Code.OUT_OF_RANGE, arguments.decode())


def wait(arguments: bytes) -> bytes:
    """Say in a folder that it runs, wait there until it may end, and return the arguments' length.

    :param arguments: the folder's path, and anything after a zero byte.
    """
    folder = Path(arguments.partition(b"\0")[0].decode())
    (folder / f"running-{os.getpid()}").touch()
    limit = time.monotonic() + _LIMIT
    while not (folder / "go").exists():
        if time.monotonic() > limit:
            raise StatusError(Code.DEADLINE_EXCEEDED, "the kit does not let it end")
        time.sleep(0.01)
    return str(len(arguments)).encode()
