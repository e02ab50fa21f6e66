"""One assignment: what is uploaded for it, in whatever order, and what it holds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fcp_core.aggregation.engine import HeldBody
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.machine import InvalidTransition


class Held(HeldBody):
    """A body that another process holds."""

    def __init__(self, size):
        self.size, self.dropped = size, 0

    def __len__(self):
        return self.size

    def drop(self):
        self.dropped += 1

    async def fetch(self):
        raise AssertionError("nobody asked for it")


def started():
    made = Assignment("a", "session", 5.0)
    made.move(Stage.STARTED)
    return made


def test_one_upload_from_its_first_byte_until_it_is_handed_over():
    made = started()
    assert made.begin_upload("x", 10.0)
    assert made.state is Stage.UPLOADING
    body = memoryview(b"body")
    assert made.finish_upload("x", body, 12.5)
    assert (made.state, made.received) == (Stage.UPLOADED, ("x",))
    assert (made.size, made.held, made.upload_seconds) == (4, 4, 2.5)
    assert made.take("x") is body
    with pytest.raises(KeyError):
        made.take("x")
    # The bytes are in the engine's hands: they are held until they are accumulated.
    assert made.held == 4
    assert made.release() == 4
    assert (made.held, made.size, made.release()) == (0, 4, 0)


def test_nothing_is_uploaded_before_the_start_or_after_the_end():
    made = Assignment("a", "session", 5.0)
    with pytest.raises(InvalidTransition):
        made.begin_upload("x", 6.0)
    assert made.state is Stage.ASSIGNED
    made.move(Stage.DROPPED)
    with pytest.raises(InvalidTransition):
        made.begin_upload("x", 7.0)
    assert not made.finish_upload("x", b"late", 8.0)
    assert (made.uploads, made.held) == ({}, 0)


def test_of_two_uploads_of_one_slot_the_first_that_is_complete_counts():
    made = started()
    assert made.begin_upload("x", 1.0)
    assert made.begin_upload("x", 2.0)
    assert made.finish_upload("x", b"first", 3.0)
    # The other one goes on, and nobody waits for it.
    assert made.state is Stage.UPLOADED
    assert not made.finish_upload("x", b"the second", 4.0)
    assert not made.finish_upload("x", b"a third", 5.0)
    assert (made.take("x"), made.size, made.held) == (b"first", 5, 5)
    assert not made.begin_upload("x", 6.0)
    assert made.state is Stage.UPLOADED


def test_one_of_two_connections_breaks():
    made = started()
    for now in (1.0, 2.0):
        made.begin_upload("x", now)
    made.abandon_upload("x")
    assert made.state is Stage.UPLOADING
    assert made.finish_upload("x", b"body", 3.0)
    made.abandon_upload("x")
    assert made.state is Stage.UPLOADED


def test_a_broken_upload_leads_back_to_where_it_began():
    made = started()
    made.begin_upload("x", 1.0)
    made.abandon_upload("x")
    made.abandon_upload("x")
    assert made.state is Stage.STARTED
    made.begin_upload("x", 2.0)
    made.finish_upload("x", b"x", 3.0)
    made.begin_upload("y", 4.0)
    assert made.state is Stage.UPLOADING
    made.abandon_upload("y")
    assert (made.state, made.received) == (Stage.UPLOADED, ("x",))


def test_several_slots_are_uploaded_once_all_are_there():
    made = started()
    made.begin_upload("x", 1.0)
    made.begin_upload("y", 2.0)
    assert made.finish_upload("y", b"yy", 3.0)
    assert made.state is Stage.UPLOADING
    assert made.finish_upload("x", b"x", 5.0)
    assert made.state is Stage.UPLOADED
    assert (made.uploads, made.upload_seconds) == ({"x": b"x", "y": b"yy"}, 5.0)
    assert (made.size, made.held) == (3, 3)


@pytest.mark.parametrize("last", [Stage.QUEUED, Stage.ACCUMULATING, Stage.CONTRIBUTED])
def test_bytes_that_come_too_late_are_not_wanted(last):
    made = started()
    for stage in (Stage.QUEUED, Stage.ACCUMULATING, Stage.CONTRIBUTED):
        made.move(stage)
        if stage is last:
            break
    assert not made.begin_upload("x", 9.0)
    assert (made.state, made.held) == (last, 0)


def test_what_is_held_elsewhere_is_dropped_with_it():
    made = started()
    kept, taken = Held(7), Held(5)
    for slot, body in (("x", kept), ("y", taken)):
        made.begin_upload(slot, 1.0)
        made.finish_upload(slot, body, 2.0)
    assert made.take("y") is taken
    assert made.release() == 12
    assert (kept.dropped, taken.dropped) == (1, 0)
    assert made.release() == 0
    assert kept.dropped == 1


def test_it_can_be_stopped_until_it_accumulates():
    made = started()
    seen = []
    for stage in (Stage.QUEUED, Stage.ACCUMULATING, Stage.CONTRIBUTED):
        seen.append((made.stoppable, made.ended))
        made.move(stage)
    seen.append((made.stoppable, made.ended))
    assert seen == [(True, False), (True, False), (False, False), (False, True)]
    dropped = started()
    dropped.move(Stage.DROPPED)
    assert (dropped.stoppable, dropped.ended) == (False, True)


class Model(RuleBasedStateMachine):
    """Uploads of three slots in any order, against counters and flags."""

    SLOTS = st.sampled_from("xyz")

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.made = Assignment("a", "session", 0.0)
        self.begun = self.gone = self.late = False
        self.open = Counter()
        self.there = {}
        self.size = self.held = 0

    @rule()
    def start(self):
        if not self.begun and not self.gone:
            self.made.move(Stage.STARTED)
            self.begun = True

    @rule(slot=SLOTS)
    def begin(self, slot):
        self.now += 1
        if slot in self.there or (self.late and not self.gone):
            assert not self.made.begin_upload(slot, self.now)
        elif not self.begun or self.gone:
            with pytest.raises(InvalidTransition):
                self.made.begin_upload(slot, self.now)
        else:
            assert self.made.begin_upload(slot, self.now)
            self.open[slot] += 1

    @rule(slot=SLOTS, size=st.integers(0, 9))
    def finish(self, slot, size):
        self.now += 1
        counts = self.open[slot] > 0 and slot not in self.there
        assert self.made.finish_upload(slot, bytes(size), self.now) is counts
        self.open[slot] = max(0, self.open[slot] - 1)
        if counts:
            self.there[slot] = bytes(size)
            self.size += size
            self.held += size

    @rule(slot=SLOTS)
    def abandon(self, slot):
        self.made.abandon_upload(slot)
        self.open[slot] = max(0, self.open[slot] - 1)

    @rule(slot=SLOTS)
    def take(self, slot):
        if self.there.get(slot) is not None:
            assert self.made.take(slot) == self.there[slot]
            self.there[slot] = None
        else:
            with pytest.raises(KeyError):
                self.made.take(slot)

    @rule()
    def queue(self):
        ready = self.begun and not self.gone and not self.late and not self.uploading
        if ready:
            self.made.move(Stage.QUEUED)
            self.late = True
        else:
            with pytest.raises(InvalidTransition):
                self.made.move(Stage.QUEUED)

    @rule()
    def drop(self):
        if self.gone:
            with pytest.raises(InvalidTransition):
                self.made.move(Stage.DROPPED)
            return
        self.made.move(Stage.DROPPED)
        assert self.made.release() == self.held
        self.held = 0
        self.open.clear()
        self.there = dict.fromkeys(self.there)
        self.gone = True

    @property
    def uploading(self):
        return any(count and slot not in self.there for slot, count in self.open.items())

    @invariant()
    def it_agrees(self):
        made = self.made
        if self.gone:
            wanted = Stage.DROPPED
        elif self.late:
            wanted = Stage.QUEUED
        elif not self.begun:
            wanted = Stage.ASSIGNED
        elif self.uploading:
            wanted = Stage.UPLOADING
        else:
            wanted = Stage.UPLOADED if self.there else Stage.STARTED
        assert made.state is wanted
        assert sorted(made.received) == sorted(self.there)
        assert made.uploads == {s: body for s, body in self.there.items() if body is not None}
        assert (made.size, made.held) == (self.size, self.held)
        assert made.upload_seconds >= 0


TestAssignmentModel = Model.TestCase
TestAssignmentModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
