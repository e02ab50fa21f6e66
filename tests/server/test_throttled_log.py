"""What the log says of devices that are turned away: each reason at once, and then seldom."""

from __future__ import annotations

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server, ServerThread
from fcp_core.server.throttled_log import EVERY, KINDS, ThrottledLog


def test_a_reason_is_said_at_once_and_then_once_a_minute(caplog):
    now = [1000.0]
    log = ThrottledLog(lambda: now[0])
    for _ in range(5):
        log.warn("full", "there is no room\nfor more")
        log.warn("rate", "too often")
    assert len(caplog.messages) == 2
    now[0] += EVERY
    log.warn("full", "there is no room")
    assert caplog.messages[0].startswith("a device is turned away: there is no room")
    assert "\n" not in caplog.messages[0]
    assert caplog.messages[2] == (
        "a device is turned away: there is no room (4 more since this was said last)"
    )


def test_reasons_take_a_bounded_room():
    log = ThrottledLog(lambda: 0.0)
    for number in range(3 * KINDS):
        log.warn(str(number), "x")
    assert len(log._kinds) <= KINDS


def test_a_population_that_is_none_is_named(tmp_path, make_device, caplog):
    """Such a device stays away for hours, so whoever named the populations is to know."""
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    with ServerThread(Server(plugins, populations=["people"])) as thread:
        device = make_device(thread.server.url, "other")
        for _ in range(3):
            with pytest.raises(Exception, match="404"):
                device.assignment()
    said = [line for line in caplog.messages if line.startswith("a device is turned away")]
    assert len(said) == 1
    assert "EligibilityEvalTasks" in said[0]
    assert "other" in said[0]
