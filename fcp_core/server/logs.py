"""Logging: as text or as JSON, one object a line, and never anything that identifies a device.

What is logged may hold what a device, a program or a plugin wrote. So a message is one line of a
bounded length, without characters that colour, erase or reverse what a terminal shows, and the
lines of an exception are indented: nothing can pass for a line of the server's own.

What a record is about (the session, the task, the route) comes in its attribute ``fcp``, a
dictionary that ``extra={"fcp": {...}}`` sets; the JSON form writes its items as fields.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from typing import IO, Any, Literal

from fcp_core.rounds.text import LONGEST, TextFormatter, escaped, shortened

#: How the log is written.
LogFormat = Literal["json", "text"]

#: Loggers of Tornado's that write the addresses of clients.
_TORNADO = ("tornado.general", "tornado.application", "tornado.access")

_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}"
    r"|[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){1,6}:[0-9a-fA-F]{1,4})(?!\w)"
)


class JSONFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line.

    The fields are ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, those of the
    record's ``fcp``, and ``exception`` if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        fields: dict[str, Any] = {
            "time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:LONGEST],
        }
        about = getattr(record, "fcp", None)
        if isinstance(about, dict):
            fields = {**{name: _bounded(value) for name, value in about.items()}, **fields}
        if record.exc_info:
            fields["exception"] = shortened(self.formatException(record.exc_info))
        line = json.dumps(fields, ensure_ascii=False, default=str)
        # JSON has escapes for all of them; whoever reads it has the characters again.
        return escaped(line, lambda char: json.dumps(char)[1:-1])


def _bounded(value: object) -> object:
    return value[:LONGEST] if isinstance(value, str) else value


def configure_logging(
    level: int, format: LogFormat = "text", stream: IO[str] | None = None
) -> logging.Handler:
    """Write the log of this process to *stream*, instead of where it went before.

    :param level: the least that is written, such as ``logging.INFO``.
    :param stream: standard error by default.
    :returns: the handler that does it.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    hide_addresses()
    return handler


def log_levels() -> dict[str, int]:
    """Return what decides how much is logged, for another process: levels by logger's name."""
    names = ("", "fcp", "fcp.server", "fcp.services", "fcp.hooks")
    levels = {name: logging.getLogger(name or None).level for name in names}
    return {name: level for name, level in levels.items() if level or not name}


def hide_addresses() -> None:
    """Have Tornado's logs show no address of a client."""
    for name in _TORNADO:
        logging.getLogger(name).addFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    record.msg, record.args = _ADDRESS.sub("(address)", message), ()
    return True
