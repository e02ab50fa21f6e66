"""The built-in observer: writes events to the log ``fcp.events`` if that is set to INFO.

A task that fails is a warning: that its devices all fail should be seen without a setting.
"""

from __future__ import annotations

import dataclasses
import logging

from fcp_core.plugins import hookimpl
from fcp_core.protocol.status import Code
from fcp_core.rounds.events import Event, TaskClosed

logger = logging.getLogger("fcp.events")


@hookimpl
def fcp_event(event: Event) -> None:
    """Write one line, if the log is set to INFO or it is the end of a task that failed."""
    failed = isinstance(event, TaskClosed) and event.code not in (Code.OK, Code.CANCELLED)
    level = logging.WARNING if failed else logging.INFO
    if logger.isEnabledFor(level):
        values = dataclasses.asdict(event)
        del values["at"]
        kind = type(event).__name__
        text = " ".join(f"{key}={value}" for key, value in values.items())
        logger.log(level, "%s %s", kind, text, extra={"fcp": {"event": kind, **values}})
