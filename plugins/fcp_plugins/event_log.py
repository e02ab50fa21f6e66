"""The built-in observer: writes events to the log ``fcp.events`` if that is set to INFO."""

from __future__ import annotations

import dataclasses
import logging

from fcp_core.plugins import hookimpl
from fcp_core.rounds.events import Event

logger = logging.getLogger("fcp.events")


@hookimpl
def fcp_event(event: Event) -> None:
    """Write one line, if the log is set to INFO."""
    if logger.isEnabledFor(logging.INFO):
        values = dataclasses.asdict(event)
        del values["at"]
        kind = type(event).__name__
        text = " ".join(f"{key}={value}" for key, value in values.items())
        logger.info("%s %s", kind, text, extra={"fcp": {"event": kind, **values}})
