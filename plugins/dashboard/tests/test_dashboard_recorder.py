"""What is counted of events: shapes, errors, series, and the bounds of all of it."""

import dataclasses
from typing import get_args

import pytest

from fcp_core.protocol.status import Code
from fcp_core.rounds import events
from fcp_core.rounds.assignment import Stage
from fcp_core.rounds.events import (
    Assigned,
    CheckedIn,
    Committed,
    Contributed,
    Dropped,
    Rejected,
    Surplus,
)
from fcp_dashboard import formats
from fcp_dashboard import recorder as recording
from fcp_dashboard.failures import shape_of
from fcp_dashboard.recorder import Recorder, Series
from fcp_dashboard.shapes import _REACHED, shape_of_drop, shape_of_late
from fcp_dashboard.views.task import times

WHERE = (1000.0, "people")
TASK = ("id", "train")


def checked_in(session, version="1.0", offered=("train",)):
    return CheckedIn(*WHERE, session, offered, version)


def shapes_of(*happened):
    recorder = Recorder()
    for event in happened:
        recorder.event(event)
    return {(each.version, each.shape): each.count for each in recorder.shapes.all()}


def test_sessions_are_told_by_what_happened():
    begun = [event for s in "abcdef" for event in (checked_in(s), Assigned(*WHERE, s, *TASK))]
    ends = [
        Contributed(*WHERE, "a", *TASK, 10),
        Dropped(*WHERE, "b", *TASK, "aborted", Code.INTERNAL, "", "1.0", "assigned"),
        Dropped(*WHERE, "c", *TASK, "submit", Code.INVALID_ARGUMENT, "", "1.0", "accumulating"),
        Dropped(*WHERE, "d", *TASK, "silent", Code.DEADLINE_EXCEEDED, "", "1.0", "assigned"),
        Surplus(*WHERE, "e", *TASK, "", "uploaded"),
        Surplus(*WHERE, "f", *TASK, "", "started"),
        Rejected(*WHERE, "g", "refused", "2.0"),
    ]
    assert shapes_of(*begun, *ends) == {
        ("1.0", "-v[]+^"): 1,
        ("1.0", "-v[!"): 1,
        ("1.0", "-v[]+#"): 2,
        ("1.0", "-v["): 1,
        ("1.0", "-v[]."): 1,
        ("2.0", "-"): 1,
    }


def test_each_stage_has_a_shape():
    stages = {stage.value for stage in Stage} - {"contributed", "dropped"}
    assert stages == set(_REACHED)
    assert all(shape_of_drop(stage, "aborted")[-1] in "!#" for stage in stages)
    assert all(shape_of_late(stage)[-1] in ".#" for stage in stages)


def test_a_session_with_several_tasks_is_known_until_the_last():
    found = shapes_of(
        checked_in("a"),
        Assigned(*WHERE, "a", *TASK),
        Assigned(*WHERE, "a", "other", "test"),
        Contributed(*WHERE, "a", *TASK, 10),
        Contributed(*WHERE, "a", "other", "test", 10),
        Contributed(*WHERE, "a", "third", "test", 10),
    )
    assert found == {("1.0", "-v[]+^"): 2, ("unknown", "-v[]+^"): 1}


def test_every_kind_of_event_is_taken():
    """A kind that is added to the core must not make the recorder fail."""
    recorder = Recorder()
    samples = {"at": 1.0, "code": Code.OK, "figures": {}, "offered": ()}
    numbers = {"size", "goal_count", "contributed", "seconds", "upload_seconds", "fold_seconds"}
    numbers.add("contributions")
    for kind in get_args(events.Event):
        values = {
            field.name: samples.get(field.name, 1 if field.name in numbers else "x")
            for field in dataclasses.fields(kind)
        }
        recorder.event(kind(**values))

    class Newer:
        pass

    recorder.event(Newer())
    kinds = {each.kind for each in recorder.events()}
    assert kinds == {kind.__name__ for kind in get_args(events.Event)}


def test_how_far_devices_came_is_counted_by_task():
    recorder = Recorder()
    for number, session in enumerate("abc"):
        recorder.event(checked_in(session, offered=("train", "test")))
        if number:
            recorder.event(Assigned(*WHERE, session, *TASK))
    recorder.event(Rejected(*WHERE, "a", "no_task"))
    (task,) = recorder.tasks(1000.0)
    assert (task.offered, task.eligible, task.assigned) == (3, 3, 2)
    (population,) = recorder.populations(1000.0)
    assert (population.total, population.turned_away) == (3, {"no_task": 1})


def test_the_times_of_contributions_and_of_writes_are_kept():
    recorder = Recorder()
    recorder.event(Committed(*WHERE, *TASK, 2, 4096, 0.02))
    for session in "ab":
        recorder.event(Contributed(*WHERE, session, *TASK, 8, 3.0, 0.5, 0.25))
    (task,) = recorder.tasks(1000.0)
    assert (task.times, task.commits) == ([(2.25, 0.5, 0.25)] * 2, [0.02])
    assert times(task)[-1] == ("Of that, one write of the storage", *[formats.seconds(0.02)] * 3)
    task.commits = []
    assert [row[0] for row in times(task)][-1] == "Wait, add and store"
    assert any("2 stored in 4096 bytes" in event.text for event in recorder.events())


def test_what_is_kept_is_bounded(monkeypatch):
    for name in ("SESSIONS", "TASKS", "POPULATIONS"):
        monkeypatch.setattr(recording, name, 10)
    recorder = Recorder()
    for number in range(2000):
        recorder.event(CheckedIn(1.0, f"p{number}", f"s{number}", (f"t{number}",), f"v{number}"))
        recorder.event(Assigned(1.0, f"p{number}", f"s{number}", f"id{number}", "t"))
        recorder.event(
            Dropped(
                1.0, "p", "", f"id{number}", f"t{number}", "x", Code.INTERNAL, "m", f"v{number}"
            )
        )
        recorder.event(CheckedIn(1.0, "one", f"o{number}", (f"t{number}",)))
    assert len(recorder.tasks(1.0)) == 10
    assert len(recorder.populations(1.0)) == 10
    assert len(recorder._sessions) == 10
    assert len(recorder._versions) == 50
    assert len(recorder.failures.all()) == 300
    assert all(len(each.offers) <= 1001 for each in recorder._populations.values())


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        ("it took 12.5 s of 10", "it took * s of *"),
        ("no tensor 'layer/3' in \"x\"", "no tensor '*' in '*'"),
        ("session 54e53c22-7427-4614-a6e3-95fdf4a355f4 at 0xFF", "session * at *"),
    ],
)
def test_messages_are_alike_but_for_what_varies(message, shape):
    assert shape_of(message) == shape


def test_a_series_forgets_what_is_old_and_a_clock_that_goes_back():
    series = Series()
    for at in (0, 5, 10, 599):
        series.count(at)
    assert [series.values(599)[place] for place in (0, 1, 59)] == [2, 1, 1]
    assert sum(series.values(605)) == 2
    assert sum(series.values(5000)) == 0
    series.count(100)
    assert sum(series.values(100)) == 1
