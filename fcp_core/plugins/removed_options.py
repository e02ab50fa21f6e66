"""Options that an earlier release had: still accepted for one release, ignored, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_STEERED = "leave it out: pace steering has the minutes and the day that suit it"
_VERSIONS = "leave it out: devices must implement the version that the task's options need"
_VERDICTS = "leave it out: a refused device comes back after 12 to 24 hours"
_PATIENCE = "leave it out: who would have to wait longer than a minute is sent away"
_OUTLIERS = "leave it out: a device that is slow loses its place, and is not sent away"

#: By section and name: what to write instead. An entry stays for one release.
REMOVED: Mapping[tuple[str, str], str] = {
    ("", "closing_timeout"): "leave it out: a task has 10 minutes after its deadline to end",
    ("", "first_sign_timeout"): "leave it out: it is a fifth of assignment_timeout",
    ("", "task_max_at_work"): "write max_at_work in the task itself, or for its population",
    ("", "unsafe_noise_seed"): "leave it out: noise is never known in advance",
    ("eligibility.capabilities", "retry"): _VERDICTS,
    ("eligibility.client_version", "retry"): _VERDICTS,
    ("eligibility.data_availability", "min_version"): _VERSIONS,
    ("eligibility.sampling_without_replacement", "min_version"): _VERSIONS,
    ("eligibility.tensorflow_custom", "min_version"): _VERSIONS,
    ("pacing.adaptive", "fill_time"): _STEERED,
    ("pacing.adaptive", "max_delay"): _STEERED,
    ("pacing.adaptive", "min_delay"): _STEERED,
    ("selection.rate_capped", "wait"): _PATIENCE,
    ("selection.time_windows", "wait"): _PATIENCE,
    ("server", "pin_processes"): "leave it out: run it under 'taskset' to leave processors free",
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
