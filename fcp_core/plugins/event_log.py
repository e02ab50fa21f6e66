"""Writes events to the log ``fcp.events`` if that is set to INFO.

A task that fails is a warning: that its devices all fail should be seen without a setting.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import partial

from fcp_core.rounds.events import Event, TaskClosed

logger = logging.getLogger("fcp.events")
#: Returns whether the log takes what happens to devices.
takes_devices = partial(logger.isEnabledFor, logging.INFO)


def write(event: Event) -> None:
    """Write one line, if the log is set to INFO or it is the end of a task that failed."""
    failed = isinstance(event, TaskClosed) and event.code.name not in ("OK", "CANCELLED")
    level = logging.WARNING if failed else logging.INFO
    if logger.isEnabledFor(level):
        kind = type(event).__name__
        values = dataclasses.asdict(event)
        del values["at"]
        text = " ".join(f"{key}={value}" for key, value in values.items())
        logger.log(level, "%s %s", kind, text, extra={"fcp": {"event": kind, **values}})
