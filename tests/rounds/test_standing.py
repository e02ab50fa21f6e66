"""What a task waits for, as a sentence."""

import pytest

from fcp_core.protocol.status import Code
from fcp_core.rounds.experience import Lately
from fcp_core.rounds.policies import RetryWindow
from fcp_core.rounds.standing import explain, span
from tests.rounds.task_events import assign, contribute, machine

NAMES = frozenset({"task"})


def seen(came=None, offered=None, windows=None):
    lately = Lately()
    lately.came, lately.windows = came, windows
    if offered is not None:
        lately.offers[NAMES] = offered
    return lately


def test_a_task_whose_devices_never_came():
    assert explain(machine(goal=10), seen(), 0, 5.0) == (
        "10 of 10 are missing: no device of population p has checked in since the server began"
    )


def test_a_task_whose_devices_are_refused():
    """The sentence that an operator is to act on."""
    task = machine(goal=10, over_selection=2.0, deadline=1e6)
    for number in range(7):
        (made,) = assign(task, [f"d{number}"])
        contribute(task, made)
    task.reasons.note("refused by eligibility: minimum_separation", 212)
    window = (RetryWindow(60, 120), RetryWindow(600, 1200))
    text = explain(task, seen(came=900.0, offered=60.0, windows=window), 0, 900.0)
    assert text == (
        "3 of 10 are missing: no eligible device checked in for 14 minutes (those without a task "
        "are asked back after 10 minutes to 20 minutes); 212 were refused by minimum_separation"
    )


def test_devices_come_and_none_is_eligible():
    text = explain(machine(), seen(came=4.0), 0, 5.0)
    assert "no eligible device has checked in, and the last one of any kind came 1 second ago" in (
        text
    )


def test_devices_at_work_are_counted_with_how_far_they_are():
    task = machine(goal=2, over_selection=1.0)
    assign(task, ["a"])
    task.assign("b", "", 0.0)
    text = explain(task, seen(came=1.0, offered=1.0), 0, 2.0)
    assert text == (
        "2 of 2 are missing: 2 devices are at work (1 of them uploading), and no more are wanted "
        "at a time"
    )


def test_devices_that_a_policy_holds():
    text = explain(machine(), seen(came=1.0, offered=1.0), 3, 2.0)
    assert "3 devices wait, and the selection policy has given none of them this task yet" in text


def test_drop_outs_are_named():
    task = machine(goal=1)
    assign(task, ["a"])
    task.drop("a", "aborted", Code.INTERNAL, "", 1.0)
    text = explain(task, seen(came=1.0, offered=1.0), 0, 1.2)
    assert text == (
        "1 of 1 is missing: the last eligible device checked in just now; "
        "1 dropped out (1 x aborted INTERNAL)"
    )


def test_a_task_that_ended_waits_for_nothing():
    task = machine()
    task.cancel(Code.CANCELLED, "", 1.0)
    assert explain(task, seen(), 0, 2.0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (119, "119 seconds"),
        (840, "14 minutes"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 3700, "3 d 1 h"),
    ],
)
def test_times_are_written_as_people_say_them(seconds, text):
    assert span(seconds) == text
