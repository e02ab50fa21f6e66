"""The simple protocol's machine: transitions, counters, close messages, outliers, the drain."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fcp_aggregators.plugin import fcp_register_aggregation_protocols
from fcp_core.aggregation.protocol import (
    AbortFoldEffect,
    FetchEffect,
    FoldEffect,
    ReportEffect,
)
from fcp_core.aggregation.simple import OutlierDetection, SimpleAggregationProtocol
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code, StatusError

(SIMPLE,) = fcp_register_aggregation_protocols()
INPUT = messages.ClientMessage(simple_aggregation={"input": {"inline_bytes": b"data"}})
BY_URI = messages.ClientMessage(simple_aggregation={"input": {"uri": "upload/1"}})


def started(clients=0, options=()):
    machine = SIMPLE.make(dict(options))
    machine.start(clients, 0.0)
    return machine


def counters(machine):
    """Completed, failed, pending, aborted; included, in flight, discarded."""
    status = machine.status()
    return (
        status.num_clients_completed,
        status.num_clients_failed,
        status.num_clients_pending,
        status.num_clients_aborted,
        status.num_inputs_aggregated_and_included,
        status.num_inputs_aggregated_and_pending,
        status.num_inputs_discarded,
    )


def closing(machine, client):
    answer = machine.poll(client)
    if answer is None:
        return None
    return Code(answer.simple_aggregation.close_message.code)


def fails(code, function, *args):
    with pytest.raises(StatusError) as caught:
        function(*args)
    assert caught.value.code is code


def contribute(machine, client, code=Code.OK, message=""):
    assert machine.receive(client, INPUT, 1.0) == (FoldEffect(client, b"data"),)
    assert machine.folded(client, code, message, 1.0) == ()


def test_a_round_from_start_to_result():
    machine = SIMPLE.make({})
    assert machine.state() == machine.status().protocol_state == messages.PROTOCOL_CREATED
    machine.start(1, 0.0)
    assert machine.add_clients(2, 0.0) == 1
    assert machine.add_clients(1, 0.0) == 3
    assert counters(machine) == (0, 0, 4, 0, 0, 0, 0)

    assert machine.receive(0, BY_URI, 1.0) == (FetchEffect(0, "upload/1"),)
    assert counters(machine) == (1, 0, 3, 0, 0, 1, 0)
    assert not machine.is_client_closed(0)
    assert machine.poll(0) is None
    machine.folded(0, Code.OK, "", 1.0)
    assert machine.is_client_closed(0)
    assert counters(machine) == (1, 0, 3, 0, 1, 0, 0)
    assert closing(machine, 0) is Code.OK
    assert machine.poll(0) is None

    contribute(machine, 1, Code.INVALID_ARGUMENT, "wrong shape")
    answer = machine.poll(1).simple_aggregation.close_message
    assert (answer.code, answer.message) == (3, "wrong shape")
    contribute(machine, 2, Code.ABORTED)
    assert counters(machine) == (2, 1, 1, 0, 1, 0, 1)

    assert machine.complete(2.0) == (ReportEffect(),)
    assert machine.state() == messages.PROTOCOL_COMPLETING
    assert machine.reported(Code.OK, "", 2.0) == ()
    assert machine.state() == messages.PROTOCOL_COMPLETED
    assert closing(machine, 3) is Code.ABORTED
    assert counters(machine) == (2, 1, 0, 1, 1, 0, 1)
    assert machine.next_tick() is None


def test_what_each_state_refuses():
    created = SimpleAggregationProtocol()
    for call in (
        lambda: created.add_clients(0, 0.0),
        lambda: created.receive(0, INPUT, 0.0),
        lambda: created.poll(0),
        lambda: created.close(0, Code.OK, "", 0.0),
        lambda: created.complete(0.0),
        lambda: created.reported(Code.OK, "", 0.0),
        lambda: created.abort(0.0),
    ):
        fails(Code.FAILED_PRECONDITION, call)
    fails(Code.INVALID_ARGUMENT, created.start, -1, 0.0)
    machine = started(1)
    fails(Code.FAILED_PRECONDITION, machine.start, 1, 0.0)
    for number in (0, -1):
        fails(Code.INVALID_ARGUMENT, machine.add_clients, number, 0.0)
    for client in (-1, 1):
        fails(Code.INVALID_ARGUMENT, machine.receive, client, INPUT, 0.0)
        fails(Code.INVALID_ARGUMENT, machine.poll, client)
        fails(Code.INVALID_ARGUMENT, machine.close, client, Code.OK, "", 0.0)
        fails(Code.INVALID_ARGUMENT, machine.is_client_closed, client)
        fails(Code.INVALID_ARGUMENT, machine.folded, client, Code.OK, "", 0.0)
    machine.complete(0.0)
    fails(Code.FAILED_PRECONDITION, machine.complete, 0.0)
    fails(Code.FAILED_PRECONDITION, machine.add_clients, 1, 0.0)
    machine.reported(Code.OK, "", 0.0)
    for call in (machine.complete, machine.abort):
        fails(Code.FAILED_PRECONDITION, call, 0.0)
    fails(Code.FAILED_PRECONDITION, machine.reported, Code.OK, "", 0.0)


@pytest.mark.parametrize(
    "message",
    [
        messages.ClientMessage(),
        messages.ClientMessage(simple_aggregation={}),
        messages.ClientMessage(simple_aggregation={"input": {}}),
    ],
)
def test_messages_without_input_are_refused_before_anything_else(message):
    # Even by a session that has not begun: the message is looked at first.
    fails(Code.INVALID_ARGUMENT, SimpleAggregationProtocol().receive, 0, message, 0.0)
    machine = started(1)
    fails(Code.INVALID_ARGUMENT, machine.receive, 0, message, 0.0)
    assert counters(machine) == (0, 0, 1, 0, 0, 0, 0)


def test_a_client_that_closes_gets_no_message():
    machine = started(3)
    machine.close(0, Code.OK, "", 0.0)
    machine.close(1, Code.CANCELLED, "gone", 0.0)
    assert counters(machine) == (1, 1, 1, 0, 0, 0, 1)
    assert machine.poll(0) is machine.poll(1) is None
    contribute(machine, 2)
    machine.close(2, Code.CANCELLED, "too late", 0.0)
    assert counters(machine) == (2, 1, 0, 0, 1, 0, 1)


def test_only_the_first_input_of_a_client_counts():
    machine = started(1)
    machine.receive(0, INPUT, 0.0)
    assert machine.receive(0, INPUT, 0.0) == ()
    machine.folded(0, Code.OK, "", 0.0)
    assert machine.receive(0, INPUT, 0.0) == ()
    machine.folded(0, Code.INTERNAL, "", 0.0)
    assert counters(machine) == (1, 0, 0, 0, 1, 0, 0)


def test_inputs_after_the_end_are_discarded():
    machine = started(2)
    machine.complete(0.0)
    assert machine.receive(0, INPUT, 0.0) == ()
    assert closing(machine, 0) is Code.ABORTED
    assert counters(machine) == (1, 0, 1, 0, 0, 0, 1)
    machine.reported(Code.OK, "", 0.0)
    # By now the other one was aborted with the session.
    assert machine.receive(1, INPUT, 0.0) == ()
    assert counters(machine) == (1, 0, 0, 1, 0, 0, 1)


def test_inputs_in_flight_have_five_seconds_after_the_report():
    machine = started(4)
    for client in (0, 1, 2):
        machine.receive(client, INPUT, 0.0)
    machine.complete(10.0)
    machine.folded(0, Code.OK, "", 10.0)
    machine.reported(Code.OK, "", 20.0)
    assert machine.next_tick() == 25.0
    assert counters(machine) == (3, 0, 1, 0, 1, 2, 0)
    machine.folded(1, Code.OK, "", 24.0)
    machine.tick(24.9)
    assert counters(machine) == (3, 0, 1, 0, 2, 1, 0)
    machine.tick(25.0)
    assert counters(machine) == (3, 0, 0, 1, 2, 0, 1)
    assert closing(machine, 2) is closing(machine, 3) is Code.ABORTED
    machine.folded(2, Code.OK, "", 26.0)
    assert counters(machine) == (3, 0, 0, 1, 2, 0, 1)
    assert machine.next_tick() is None


def test_the_drain_ends_with_the_last_input():
    machine = started(2)
    machine.receive(0, INPUT, 0.0)
    machine.complete(0.0)
    machine.reported(Code.OK, "", 1.0)
    machine.folded(0, Code.INVALID_ARGUMENT, "", 1.5)
    assert machine.next_tick() is None
    assert counters(machine) == (0, 1, 0, 1, 0, 0, 0)


def test_a_report_that_fails_discards_everything():
    machine = started(3)
    contribute(machine, 0)
    machine.receive(1, INPUT, 0.0)
    machine.complete(0.0)
    assert machine.reported(Code.INTERNAL, "", 0.0) == (AbortFoldEffect(),)
    assert machine.state() == messages.PROTOCOL_ABORTED
    machine.folded(1, Code.OK, "", 1.0)
    assert counters(machine) == (2, 0, 0, 1, 0, 0, 2)
    assert machine.abort(0.0) == ()


@pytest.mark.parametrize("completing", [False, True])
def test_abort_closes_everybody_at_once(completing):
    machine = started(3, {"detection_interval": 1.0})
    contribute(machine, 0)
    machine.receive(1, INPUT, 0.0)
    if completing:
        machine.complete(0.0)
    assert machine.abort(0.0) == (AbortFoldEffect(),)
    assert machine.next_tick() is None
    assert counters(machine) == (2, 0, 0, 1, 0, 0, 2)
    # It was told OK when it was folded; the session's end is no news for it.
    assert closing(machine, 0) is Code.OK
    assert closing(machine, 1) is closing(machine, 2) is Code.ABORTED
    machine.folded(1, Code.OK, "", 0.0)
    assert machine.reported(Code.OK, "", 0.0) == ()
    assert machine.abort(0.0) == ()
    assert counters(machine) == (2, 0, 0, 1, 0, 0, 2)


def test_outliers_are_given_up():
    machine = started(4, {"detection_interval": 10.0, "grace_period": 3.0})
    assert machine.next_tick() == 10.0
    machine.receive(0, INPUT, 1.0)
    machine.tick(10.0)
    # One sample is not enough for a deviation.
    assert counters(machine)[3] == 0
    assert machine.next_tick() == 20.0
    machine.receive(1, INPUT, 3.0)
    # mean 2, sample deviation sqrt(2): the threshold is 2 + 6 * 1.4142 + 3 = 13.485
    late = machine.add_clients(1, 7.0)
    machine.tick(13.4)
    assert machine.next_tick() == 20.0
    machine.tick(20.0)
    assert [closing(machine, client) for client in (2, 3, late)] == [
        Code.ABORTED,
        Code.ABORTED,
        None,
    ]
    assert counters(machine) == (2, 0, 1, 2, 0, 2, 0)
    machine.tick(30.0)
    assert closing(machine, late) is Code.ABORTED


def test_the_threshold_of_an_outlier_to_the_second():
    for now, aborted in ((13.48, 0), (13.49, 1)):
        machine = SimpleAggregationProtocol(OutlierDetection(1.0, 3.0))
        machine.start(3, 0.0)
        machine.receive(0, INPUT, 1.0)
        machine.receive(1, INPUT, 3.0)
        machine.tick(now)
        assert counters(machine)[3] == aborted


def test_no_outliers_after_complete():
    machine = started(3, {"detection_interval": 1.0})
    machine.receive(0, INPUT, 0.0)
    machine.receive(1, INPUT, 0.0)
    machine.complete(0.0)
    machine.tick(1000.0)
    assert counters(machine)[2] == 1


def test_options_that_make_no_sense():
    for options in ({"detection_interval": -1.0}, {"grace_period": -1.0}):
        with pytest.raises(UsageError, match="must not be negative"):
            SIMPLE.make(options)


class AnySequence(RuleBasedStateMachine):
    """Whatever happens in whatever order, the counters add up and every client is closed."""

    def __init__(self):
        super().__init__()
        self.machine = SIMPLE.make({"detection_interval": 7.0, "grace_period": 1.0})
        self.now = 0.0
        self.folding = set()
        self.reporting = False
        self.clients = 2
        self.machine.start(2, 0.0)

    def run(self, effects):
        for effect in effects:
            if isinstance(effect, FoldEffect):
                self.folding.add(effect.client_id)
            self.reporting |= isinstance(effect, ReportEffect)

    def is_started(self):
        return self.machine.state() == messages.PROTOCOL_STARTED

    @precondition(is_started)
    @rule()
    def add(self):
        assert self.machine.add_clients(1, self.now) == self.clients
        self.clients += 1

    @rule(data=st.data())
    def receive(self, data):
        client = data.draw(st.integers(0, self.clients - 1))
        self.run(self.machine.receive(client, INPUT, self.now))

    @rule(data=st.data(), code=st.sampled_from([Code.OK, Code.CANCELLED]))
    def close(self, data, code):
        self.run(
            self.machine.close(data.draw(st.integers(0, self.clients - 1)), code, "", self.now)
        )

    @precondition(lambda self: self.folding)
    @rule(data=st.data(), code=st.sampled_from([Code.OK, Code.OK, Code.ABORTED, Code.INTERNAL]))
    def fold(self, data, code):
        client = data.draw(st.sampled_from(sorted(self.folding)))
        self.folding.discard(client)
        self.run(self.machine.folded(client, code, "", self.now))

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 60.0]))
    def wait(self, seconds):
        self.now += seconds
        self.run(self.machine.tick(self.now))

    @precondition(is_started)
    @rule()
    def complete(self):
        self.run(self.machine.complete(self.now))

    @precondition(lambda self: self.reporting)
    @rule(code=st.sampled_from([Code.OK, Code.INTERNAL]))
    def report(self, code):
        self.reporting = False
        self.run(self.machine.reported(code, "", self.now))

    @precondition(
        lambda self: (
            self.machine.state() in (messages.PROTOCOL_STARTED, messages.PROTOCOL_COMPLETING)
        )
    )
    @rule()
    def abort(self):
        self.run(self.machine.abort(self.now))

    @invariant()
    def counters_add_up(self):
        completed, failed, pending, aborted, included, in_flight, discarded = counters(self.machine)
        assert completed + failed + pending + aborted == self.clients
        assert completed == included + in_flight + discarded
        assert min(counters(self.machine)) >= 0
        closed = sum(self.machine.is_client_closed(client) for client in range(self.clients))
        assert closed == self.clients - pending - in_flight

    @invariant()
    def an_end_is_an_end(self):
        _, _, pending, _, included, in_flight, _ = counters(self.machine)
        over = (messages.PROTOCOL_COMPLETED, messages.PROTOCOL_ABORTED)
        if self.machine.state() in over and self.machine.next_tick() is None:
            assert pending == in_flight == 0
            if self.machine.state() == messages.PROTOCOL_ABORTED:
                assert included == 0


AnySequence.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAnySequence = AnySequence.TestCase
