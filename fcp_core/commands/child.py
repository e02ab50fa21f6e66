"""``python -m fcp_core.commands.child``: ``fcp``, which ends with the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    """Run the command line; send this process SIGTERM once the standard input ends."""
    threading.Thread(target=_watch, name="fcp-parent", daemon=True).start()
    from fcp_core.commands.main import main as fcp

    fcp()


def _watch() -> None:
    # The pipe's other end is closed when the parent ends, however that comes about.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
