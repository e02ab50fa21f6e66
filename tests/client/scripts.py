"""What a scripted server says of a session, and how long the device is to stay away."""

from __future__ import annotations

PERMANENT = (4 * 3600 * 0.8, 4 * 3600 * 1.2)
ACCEPTED = (100, 200)


def within(seconds, window):
    # The clock goes on between drawing the time and asking how far away it is.
    return window[0] - 60 <= seconds <= window[1]
