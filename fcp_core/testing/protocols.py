"""The conformance kit of aggregation protocols: subclass, name a factory, run with pytest.

An example, complete::

    class TestSimple(AggregationProtocolConformance):
        factory = my_plugin.SIMPLE

The kit plays the shell's part: it hands the machine messages and the time, and gives it the
outcomes of its effects, in any order and at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fcp_core.aggregation.protocol import (
    AbortFoldEffect,
    AggregationProtocol,
    AggregationProtocolFactory,
    Effect,
    FetchEffect,
    FoldEffect,
    ReportEffect,
)
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.kit import Conformance, outside_calls, pytest

CREATED = messages.PROTOCOL_CREATED
STARTED = messages.PROTOCOL_STARTED
COMPLETING = messages.PROTOCOL_COMPLETING
COMPLETED = messages.PROTOCOL_COMPLETED
ABORTED = messages.PROTOCOL_ABORTED

#: Which protocol state may follow which.
TRANSITIONS: Mapping[int, frozenset[int]] = {
    CREATED: frozenset({STARTED}),
    STARTED: frozenset({COMPLETING, ABORTED}),
    COMPLETING: frozenset({COMPLETED, ABORTED}),
    COMPLETED: frozenset(),
    ABORTED: frozenset(),
}

#: Which call is allowed in which state; in all others it is FAILED_PRECONDITION.
ALLOWED: Mapping[str, frozenset[int]] = {
    "start": frozenset({CREATED}),
    "add_clients": frozenset({STARTED}),
    "receive": frozenset({STARTED, COMPLETING, COMPLETED, ABORTED}),
    "poll": frozenset({STARTED, COMPLETING, COMPLETED, ABORTED}),
    "close": frozenset({STARTED, COMPLETING, COMPLETED, ABORTED}),
    "complete": frozenset({STARTED}),
    # Aborting twice is no fault.
    "abort": frozenset({STARTED, COMPLETING, ABORTED}),
}

#: What a fold, or a fetch, may end with.
OUTCOMES = (Code.OK, Code.ABORTED, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED)

#: No client is waited for longer than this after the report, in seconds.
_DRAIN = 60.0


def outcomes() -> st.SearchStrategy[Code]:
    """Draw what a fold ends with."""
    return st.sampled_from(OUTCOMES)


class AggregationProtocolConformance(Conformance):
    """The laws of :class:`fcp_core.aggregation.protocol.AggregationProtocol`.

    For a protocol whose clients do not simply upload a checkpoint, override :meth:`message` and
    :meth:`malformed`, and turn :attr:`folds_at_once` off: the laws about what one message leads to
    are skipped then.
    """

    factory: ClassVar[AggregationProtocolFactory]
    options: ClassVar[Mapping[str, Any]] = {}
    #: A pending client's message becomes an effect for that client at once.
    folds_at_once: ClassVar[bool] = True
    #: How many calls a random history has.
    steps: ClassVar[int] = 40

    def message(self, data: bytes) -> messages.ClientMessage:
        """Return the message with which a client contributes *data*."""
        return messages.ClientMessage(simple_aggregation={"input": {"inline_bytes": data}})

    def malformed(self) -> messages.ClientMessage:
        """Return a message that no client of this protocol sends."""
        return messages.ClientMessage()

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, and makes machines that have not begun."""
        assert self.factory.name
        assert self.factory.summary
        assert "\n" not in self.factory.summary
        assert isinstance(self.make(), AggregationProtocol)
        assert self.make().state() == CREATED

    @pytest.mark.parametrize("call", sorted(ALLOWED))
    def test_a_call_is_allowed_in_its_states_only(self, call: str) -> None:
        """In all other states it is FAILED_PRECONDITION, and nothing changes."""
        for state, machine in self._machines():
            calls: dict[str, Callable[[], object]] = {
                "start": lambda m=machine: m.start(1, 5.0),  # type: ignore[misc]
                "add_clients": lambda m=machine: m.add_clients(1, 5.0),  # type: ignore[misc]
                "receive": lambda m=machine: m.receive(0, self.message(b"x"), 5.0),  # type: ignore[misc]
                "poll": lambda m=machine: m.poll(0),  # type: ignore[misc]
                "close": lambda m=machine: m.close(0, Code.OK, "", 5.0),  # type: ignore[misc]
                "complete": lambda m=machine: m.complete(5.0),  # type: ignore[misc]
                "abort": lambda m=machine: m.abort(5.0),  # type: ignore[misc]
            }
            before = machine.status()
            if state in ALLOWED[call]:
                calls[call]()
            else:
                with pytest.raises(StatusError) as caught:
                    calls[call]()
                assert caught.value.code is Code.FAILED_PRECONDITION
                assert machine.status() == before

    def test_bad_arguments_are_refused(self) -> None:
        """INVALID_ARGUMENT for wrong numbers, unknown clients and no message; nothing changes."""
        new = self.make()
        _refuses(new, lambda: new.start(-1, 0.0))
        machine = self.started(2)
        _refuses(machine, lambda: machine.add_clients(0, 0.0))
        _refuses(machine, lambda: machine.add_clients(-1, 0.0))
        _refuses(machine, lambda: machine.receive(0, self.malformed(), 0.0))
        for client in (-1, 2):
            calls: tuple[Callable[[int], object], ...] = (
                lambda c: machine.receive(c, self.message(b"x"), 0.0),
                machine.poll,
                lambda c: machine.close(c, Code.OK, "", 0.0),
                machine.is_client_closed,
            )
            for call in calls:
                _refuses(machine, lambda call=call, c=client: call(c))  # type: ignore[misc]

    def test_clients_are_numbered_in_turn(self) -> None:
        """The first is 0, and every call returns the first of its new ones."""

        def law(first: int, others: list[int]) -> None:
            machine = self.started(first)
            total = first
            for count in others:
                assert machine.add_clients(count, 1.0) == total
                total += count
            assert machine.status().num_clients_pending == total

        self.check(law, st.integers(0, 3), st.lists(st.integers(1, 3), max_size=3))

    def test_a_message_becomes_an_effect_for_its_client(self) -> None:
        """Folding or fetching what the client sent; the client is in flight until the outcome."""
        self._needs_folds_at_once()
        machine = self.started(2)
        (effect,) = machine.receive(1, self.message(b"data"), 1.0)
        assert isinstance(effect, FoldEffect | FetchEffect)
        assert effect.client_id == 1
        if isinstance(effect, FoldEffect):
            assert bytes(effect.blob) == b"data"
        assert machine.status().num_inputs_aggregated_and_pending == 1
        assert not machine.is_client_closed(1)
        assert machine.receive(1, self.message(b"again"), 1.0) == (), "a client contributes once"

    @pytest.mark.parametrize("code", OUTCOMES, ids=lambda code: code.name)
    def test_an_outcome_shows_in_the_counters_and_in_the_close_message(self, code: Code) -> None:
        """OK is included, ABORTED discarded, all others are failures; the client is told."""
        self._needs_folds_at_once()
        machine = self.started(1)
        machine.receive(0, self.message(b"data"), 1.0)
        machine.folded(0, code, "as it is", 2.0)
        assert machine.is_client_closed(0)
        status = machine.status()
        assert status.num_inputs_aggregated_and_included == (code is Code.OK)
        assert status.num_inputs_discarded == (code is Code.ABORTED)
        assert status.num_clients_failed == (code not in (Code.OK, Code.ABORTED))
        assert _close_code(machine.poll(0)) is code

    def test_a_client_may_close_itself(self) -> None:
        """With OK its input counts as discarded, else it failed; it gets no message."""
        machine = self.started(2)
        machine.close(0, Code.OK, "", 1.0)
        machine.close(1, Code.UNAVAILABLE, "gone", 1.0)
        status = machine.status()
        assert (status.num_inputs_discarded, status.num_clients_failed) == (1, 1)
        for client in (0, 1):
            assert machine.is_client_closed(client)
            assert machine.poll(client) is None
            assert machine.receive(client, self.message(b"x"), 1.0) == ()

    def test_completing_asks_for_one_report(self) -> None:
        """Its outcome decides: OK completes, anything else aborts and drops the fold."""
        for code, state in ((Code.OK, COMPLETED), (Code.INTERNAL, ABORTED)):
            machine = self.started(1)
            assert list(machine.complete(1.0)) == [ReportEffect()]
            assert machine.state() == COMPLETING
            effects = list(machine.reported(code, "as it is", 2.0))
            assert effects == ([] if code is Code.OK else [AbortFoldEffect()])
            assert machine.state() == state

    def test_aborting_drops_what_was_included(self) -> None:
        """There is one effect, and what was included is discarded; aborting again does nothing."""
        for completing in (False, True):
            machine = self.started(2)
            if self.folds_at_once:
                machine.receive(0, self.message(b"x"), 1.0)
                machine.folded(0, Code.OK, "", 1.0)
            if completing:
                machine.complete(2.0)
            assert list(machine.abort(3.0)) == [AbortFoldEffect()]
            assert machine.state() == ABORTED
            assert machine.status().num_inputs_aggregated_and_included == 0
            assert list(machine.abort(4.0)) == []
            if completing:
                # The report was under way; nobody wants it any more.
                assert list(machine.reported(Code.OK, "", 5.0)) == []
                assert machine.state() == ABORTED

    def test_every_client_is_closed_in_the_end(self) -> None:
        """After the report or an abort all are told, those in flight within a limited time."""
        for code in (Code.OK, Code.INTERNAL, None):
            machine = self.started(4)
            machine.close(3, Code.OK, "", 1.0)
            for client in (0, 1):
                machine.receive(client, self.message(b"x"), 1.0)
            if self.folds_at_once:
                machine.folded(0, Code.OK, "", 1.0)
            if code is None:
                machine.abort(2.0)
            else:
                machine.complete(2.0)
                machine.reported(code, "", 3.0)
            _drain(machine, 3.0)
            assert [machine.is_client_closed(client) for client in range(4)] == [True] * 4
            assert _close_code(machine.poll(2)) is Code.ABORTED
            assert machine.poll(3) is None

    def test_a_late_outcome_changes_nothing(self) -> None:
        """An input that comes back after everything was closed is nobody's any more."""
        self._needs_folds_at_once()
        for outcome in (Code.OK, Code.INTERNAL):
            machine = self.started(2)
            machine.receive(0, self.message(b"x"), 1.0)
            machine.abort(2.0)
            before = machine.status()
            assert list(machine.folded(0, outcome, "late", 3.0)) == []
            assert machine.status() == before

    def test_a_message_after_the_end_is_answered(self) -> None:
        """A client that comes too late is told ABORTED, and nothing is folded."""
        machine = self.started(1)
        machine.complete(1.0)
        assert list(machine.receive(0, self.message(b"x"), 2.0)) == []
        assert machine.is_client_closed(0)
        assert _close_code(machine.poll(0)) is Code.ABORTED

    def test_random_histories(self) -> None:
        """In any order of calls the invariants hold (see :class:`_History`)."""
        kit = self

        class History(_History):
            def __init__(self) -> None:
                super().__init__(kit)

        self.check_machine(History, self.steps)

    def test_it_touches_nothing_outside(self) -> None:
        """It is a machine: no files or sockets, no clock but the argument, no global randomness."""

        def run() -> None:
            machine = self.started(3)
            machine.receive(0, self.message(b"x"), 1.0)
            machine.close(1, Code.OK, "", 1.0)
            machine.tick(2.0)
            machine.complete(3.0)
            machine.reported(Code.OK, "", 4.0)
            machine.status()

        # The first run may import what it needs.
        run()
        with outside_calls() as outside:
            run()
        assert (outside.io, outside.clock) == ([], [])

    def make(self) -> AggregationProtocol:
        """Make a machine."""
        return self.factory.make(self.options)

    def started(self, clients: int) -> AggregationProtocol:
        """Make a machine and start it at time 0."""
        machine = self.make()
        machine.start(clients, 0.0)
        return machine

    def _machines(self) -> Iterator[tuple[int, AggregationProtocol]]:
        """Yield a machine in each of its states, with one pending client once it has begun."""
        yield CREATED, self.make()
        yield STARTED, self.started(1)
        completing = self.started(1)
        completing.complete(1.0)
        yield COMPLETING, completing
        completed = self.started(1)
        completed.complete(1.0)
        completed.reported(Code.OK, "", 2.0)
        yield COMPLETED, completed
        aborted = self.started(1)
        aborted.abort(1.0)
        yield ABORTED, aborted

    def _needs_folds_at_once(self) -> None:
        if not self.folds_at_once:
            pytest.skip("a message does not lead to an effect at once")


class _History(RuleBasedStateMachine):
    """Calls in any order. Outcomes may come late, twice, or for clients that have closed."""

    def __init__(self, kit: AggregationProtocolConformance) -> None:
        super().__init__()
        self.kit = kit
        self.machine = kit.make()
        self.now = 1000.0
        self.clients = 0
        self.sent: list[int] = []
        self.reporting = False
        self.state: int = CREATED
        self.closed: set[int] = set()
        self.told: set[int] = set()
        self.effects: list[Effect] = []

    def take(self, effects: Sequence[Effect]) -> None:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, FoldEffect | FetchEffect):
                assert effect.client_id not in self.sent or not self.kit.folds_at_once, (
                    f"two inputs of client {effect.client_id} are folded"
                )
                self.sent.append(effect.client_id)
            elif isinstance(effect, ReportEffect):
                self.reporting = True

    @initialize(count=st.integers(0, 3))
    def start(self, count: int) -> None:
        self.machine.start(count, self.now)
        self.clients = count

    @rule(seconds=st.sampled_from([0.0, 0.5, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        self.take(self.machine.tick(self.now))

    @precondition(lambda self: self.machine.next_tick() is not None)
    @rule()
    def jump_to_the_next_tick(self) -> None:
        due = self.machine.next_tick()
        assert due is not None
        self.now = max(self.now, due)
        self.take(self.machine.tick(self.now))
        again = self.machine.next_tick()
        assert again is None or again > self.now, "a tick that is still due after the tick"

    @precondition(lambda self: self.state == STARTED)
    @rule(count=st.integers(1, 3))
    def add(self, count: int) -> None:
        assert self.machine.add_clients(count, self.now) == self.clients
        self.clients += count

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        client = self.client(data)
        effects = self.machine.receive(client, self.kit.message(b"%d" % client), self.now)
        if client in self.closed:
            assert list(effects) == [], "something is done for a client that has closed"
        self.take(effects)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), code=outcomes())
    def close(self, data: st.DataObject, code: Code) -> None:
        self.take(self.machine.close(self.client(data), code, "gone", self.now))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), code=outcomes())
    def outcome(self, data: st.DataObject, code: Code) -> None:
        client = data.draw(st.sampled_from(self.sent))
        self.take(self.machine.folded(client, code, "so it is", self.now))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        client = self.client(data)
        message = self.machine.poll(client)
        if _close_code(message) is not None:
            assert client not in self.told, f"client {client} is told twice that it is closed"
            assert self.machine.is_client_closed(client)
            self.told.add(client)

    @precondition(lambda self: self.state == STARTED)
    @rule()
    def complete(self) -> None:
        self.take(self.machine.complete(self.now))

    @precondition(lambda self: self.reporting)
    @rule(code=st.sampled_from([Code.OK, Code.INTERNAL]))
    def report(self, code: Code) -> None:
        self.reporting = False
        self.take(self.machine.reported(code, "so it is", self.now))

    @precondition(lambda self: self.state in (STARTED, COMPLETING, ABORTED))
    @rule()
    def abort(self) -> None:
        self.take(self.machine.abort(self.now))

    @invariant()
    def states_follow_the_table(self) -> None:
        state = self.machine.state()
        if state != self.state:
            assert state in TRANSITIONS[self.state], f"from {self.state} to {state}"
        self.state = state
        assert self.machine.status().protocol_state == state

    @invariant()
    def counters_add_up(self) -> None:
        status = self.machine.status()
        clients = (
            status.num_clients_completed
            + status.num_clients_failed
            + status.num_clients_pending
            + status.num_clients_aborted
        )
        assert clients == self.clients
        assert status.num_clients_completed == (
            status.num_inputs_aggregated_and_included
            + status.num_inputs_aggregated_and_pending
            + status.num_inputs_discarded
        )
        open_clients = status.num_clients_pending + status.num_inputs_aggregated_and_pending
        assert open_clients == sum(
            not self.machine.is_client_closed(client) for client in range(self.clients)
        )

    @invariant()
    def the_closed_stay_closed(self) -> None:
        closed = {c for c in range(self.clients) if self.machine.is_client_closed(c)}
        assert self.closed <= closed
        self.closed = closed

    @invariant()
    def effects_come_once(self) -> None:
        for kind in (ReportEffect, AbortFoldEffect):
            assert sum(isinstance(effect, kind) for effect in self.effects) <= 1
        aborted = any(isinstance(effect, AbortFoldEffect) for effect in self.effects)
        assert aborted == (self.machine.state() == ABORTED)

    def client(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.clients - 1))

    def teardown(self) -> None:
        if self.state in (STARTED, COMPLETING):
            self.take(self.machine.abort(self.now))
        if self.state != CREATED:
            _drain(self.machine, self.now)
            for client in range(self.clients):
                assert self.machine.is_client_closed(client), f"client {client} is left open"


def _drain(machine: AggregationProtocol, now: float) -> None:
    """Tick until nothing is due, at most as long as clients may be waited for."""
    until = now + _DRAIN
    while (due := machine.next_tick()) is not None and due <= until:
        now = max(now, due)
        machine.tick(now)
        again = machine.next_tick()
        assert again is None or again > now, "a tick that is still due after the tick"


def _close_code(message: messages.ServerMessage | None) -> Code | None:
    """Return the code of a close message; None for another message or none."""
    if message is None or not message.simple_aggregation.HasField("close_message"):
        return None
    return Code(message.simple_aggregation.close_message.code)


def _refuses(machine: AggregationProtocol, call: Callable[[], object]) -> None:
    before = machine.status()
    with pytest.raises(StatusError) as caught:
        call()
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert machine.status() == before
