"""The built-in observer: writes events to the log ``fcp.events`` if that is set to INFO.

A task that fails is a warning: that its devices all fail should be seen without a setting.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from fcp_core.plugins import hookimpl

if TYPE_CHECKING:
    from fcp_core.rounds.events import Event

logger = logging.getLogger("fcp.events")


@hookimpl
def fcp_event(event: Event) -> None:
    """Write one line, if the log is set to INFO or it is the end of a task that failed."""
    kind = type(event).__name__
    failed = kind == "TaskClosed" and event.code.name not in ("OK", "CANCELLED")  # type: ignore[union-attr]
    level = logging.WARNING if failed else logging.INFO
    if logger.isEnabledFor(level):
        values = dataclasses.asdict(event)
        del values["at"]
        text = " ".join(f"{key}={value}" for key, value in values.items())
        logger.log(level, "%s %s", kind, text, extra={"fcp": {"event": kind, **values}})
