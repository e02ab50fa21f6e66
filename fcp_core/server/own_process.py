"""What a process is set to that serves and does nothing else."""

from __future__ import annotations

import contextlib
import gc
import math
import sys

try:
    import resource
except ImportError:  # a system without such limits
    resource = None  # type: ignore[assignment]

#: How long a thread that wants to go on waits for another one that computes, in seconds. A thread
#: that talks to a database waits so long after each of its calls of the system, of which a commit
#: has twenty: with Python's 5 ms a busy event loop makes of a commit of 6 ms one of 60.
_SWITCH = 0.0005
#: So many files a server may have open beside its connections: the storage's, those of plugins.
OTHER_FILES = 256


def allowed_files() -> float:
    """Return how many files this process may have open."""
    if resource is None:
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def allow_files(connections: int) -> None:
    """Let this process, and those that it starts, open enough files, as far as the system does.

    :param connections: how many there may be; a call that is passed on, or an upload that lies in
        a file, takes a second file.
    """
    wanted = OTHER_FILES + 2 * connections
    if allowed_files() >= wanted:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve_alone() -> None:
    """Set this process to serve well, once all is there that stays."""
    sys.setswitchinterval(_SWITCH)
    # From here on no collection looks at what is there by now: each would stop the event loop.
    gc.collect()
    gc.freeze()
