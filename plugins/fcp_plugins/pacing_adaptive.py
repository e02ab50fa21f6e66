"""Pace steering: when devices are asked back, so that check-ins come at the rate that is wanted.

A large population is spread: each device gets the earliest minute that still has room, as far as
one can foresee who comes when (see :class:`fcp_core.rounds.pacing.Pace`). The far future is never
filled up: who would overfill it, once more devices are awake than now, cannot be called off, while
what is missing is made up for from minute to minute.

A small population that was spread would never bring enough devices at a time. It gets a common time
to come at, and comes then at the rate that is wanted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.plugins import hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fcp_core.plugins.config import OptionRegistry
    from fcp_core.rounds.pacing import Pace
    from fcp_core.rounds.policies import RetryWindow

SECTION = "pacing.adaptive"

#: The share of a far minute that is left free, and the seconds after which a minute is far.
_RESERVE = 0.5
_FAR = 3600.0

#: No device is asked back sooner, or sent away for longer: by the minute there is little to steer,
#: and what devices do comes again every day.
MIN_DELAY, MAX_DELAY = 120.0, 86_400.0

#: The shortest time, in seconds, over which a small population comes.
_SHORTEST_MEETING = 5.0


def add_options(options: OptionRegistry) -> None:
    """Declare the options."""

    def add(name: str, kind: str, default: object, text: str, minimum: float | None) -> None:
        options.add(SECTION, name, kind, default, text, minimum=minimum, scopes=("population",))

    add("enabled", "bool", False, "steer the pace of check-ins", None)
    add(
        "target_rate",
        "float",
        None,
        "check-ins a second to aim for; not set: what the open tasks need",
        0.001,
    )


@hookimpl(trylast=True)
def fcp_retry_window(
    load: Mapping[str, Any], now: float, pacing: Mapping[str, Mapping[str, Any]]
) -> RetryWindow | None:
    """Choose a window, if the population's pace is to be steered."""
    options = pacing["adaptive"]
    return choose_window(load, options, now) if options["enabled"] else None


def choose_window(load: Mapping[str, Any], options: Mapping[str, Any], now: float) -> RetryWindow:
    """Return when a device that checks in now should come back.

    :param load: ``pace``, ``needs``, ``population_size`` and perhaps ``not_before``, as the hook
        gets them.
    :param options: those of ``[fcp:pacing.adaptive]``.
    """
    # Loaded here, since the command line looks at every plugin without choosing windows.
    import numpy as np

    from fcp_core.rounds.pacing import FILL_TIME, HORIZON, SLOT
    from fcp_core.rounds.policies import RetryWindow

    pace: Pace = load["pace"]
    period = 2 * MIN_DELAY
    # Before they have been given windows, all that is known of devices is that they come.
    soonest = min(max(MIN_DELAY, load.get("not_before", 0.0)), (HORIZON - 2) * SLOT)
    longest = min(max(MAX_DELAY, soonest + period), HORIZON * SLOT)
    size = max(load["population_size"], pace.recent(period, now))
    rate = options["target_rate"] or max(load["needs"] / FILL_TIME, 2 * size / longest, 0.001)
    if size < rate * period:
        meeting = math.ceil((now + soonest) / period) * period - now
        return RetryWindow(meeting, meeting + max(size / rate, _SHORTEST_MEETING))
    free = rate * SLOT * _fill() - pace.forecast(rate, now)
    into = now % SLOT
    first = math.ceil((into + soonest) / SLOT)
    last = int(longest / SLOT)
    slot = first + int(np.argmax(free[first:last] > 0))
    if free[slot] <= 0:
        return RetryWindow(max(longest / 2, soonest), longest)
    return RetryWindow(slot * SLOT - into, (slot + 1) * SLOT - into)


@functools.cache
def _fill() -> NDArray[np.float64]:
    """Return the share of each minute ahead that is filled."""
    import numpy as np

    from fcp_core.rounds.pacing import HORIZON, SLOT

    ahead = np.arange(HORIZON, dtype=np.float64) * SLOT
    return np.asarray(1 - _RESERVE * (1 - np.exp(-ahead / _FAR)))
