"""What a process is set to that serves and does nothing else."""

from __future__ import annotations

import gc
import sys

#: How long a thread that wants to go on waits for another one that computes, in seconds. A thread
#: that talks to a database waits so long after each of its calls of the system, of which a commit
#: has twenty: with Python's 5 ms a busy event loop makes of a commit of 6 ms one of 60.
_SWITCH = 0.0005


def serve_alone() -> None:
    """Set this process to serve well, once all is there that stays."""
    sys.setswitchinterval(_SWITCH)
    # From here on no collection looks at what is there by now: each would stop the event loop.
    gc.collect()
    gc.freeze()
