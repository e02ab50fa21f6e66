"""Options that an earlier release had: still accepted for one release, ignored, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_OUTLIERS = "leave it out: a device that is slow loses its place, and is not sent away"

#: By section and name: what to write instead. An entry stays for one release.
REMOVED: Mapping[tuple[str, str], str] = {
    (
        "",
        "max_inline_resource",
    ): "leave it out: what a task wants in the assignment may have 64 KiB",
    ("", "max_operations"): "leave it out: 100,000 devices may wait; max_sessions bounds all",
    ("", "max_poll_rate"): "leave it out: those who wait ask 1,000 times a second together",
    ("protocol.simple", "detection_interval"): _OUTLIERS,
    ("protocol.simple", "grace_period"): _OUTLIERS,
    ("", "resource_cache"): "leave it out: 64 MiB of what was read from the storage are kept",
}


def warn_if_removed(section: str, name: str, origin: str) -> bool:
    """Warn about an option that is gone, and say what to write instead.

    :param origin: where it was given.
    :returns: whether there used to be such an option.
    """
    instead = REMOVED.get((section, name))
    if instead is not None:
        logger.warning("%s: this option is gone and is ignored: %s.", origin, instead)
    return instead is not None
