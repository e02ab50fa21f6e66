"""The protocol kit catches machines that are broken on purpose, law by law."""

from __future__ import annotations

import time

import pytest

from fcp_core.aggregation.protocol import (
    AbortFoldEffect,
    AggregationProtocolFactory,
    FoldEffect,
    ReportEffect,
)
from fcp_core.aggregation.simple import SimpleAggregationProtocol
from fcp_core.protocol.protos import aggregation_protocol_messages_pb2 as messages
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing import AggregationProtocolConformance


class Good(SimpleAggregationProtocol):
    """The built-in machine, of which all others here are spoilt versions."""

    def __init__(self, options=None):
        super().__init__()


class StartsTwice(Good):
    def start(self, num_clients, now):
        if self.state() == messages.PROTOCOL_CREATED:
            super().start(num_clients, now)


class AbortsOnce(Good):
    def abort(self, now):
        if self.state() == messages.PROTOCOL_ABORTED:
            raise StatusError(Code.FAILED_PRECONDITION, "aborted already")
        return super().abort(now)


class TakesAnything(Good):
    def receive(self, client_id, message, now):
        if message.WhichOneof("protocol_kind") is None:
            return ()
        return super().receive(client_id, message, now)


class PythonIndices(Good):
    def poll(self, client_id):
        return super().poll(client_id % len(self._clients) if client_id < 0 else client_id)


class CountsFromOne(Good):
    def add_clients(self, num_clients, now):
        return super().add_clients(num_clients, now) + 1


class MixesUpClients(Good):
    def receive(self, client_id, message, now):
        effects = super().receive(client_id, message, now)
        return [FoldEffect(0, effect.blob) for effect in effects]


class FoldsTwice(Good):
    def receive(self, client_id, message, now):
        effects = super().receive(client_id, message, now)
        return [*effects, *effects]


class EverythingIsFine(Good):
    def folded(self, client_id, code, message, now):
        return super().folded(client_id, Code.OK, message, now)


class SaysOkay(Good):
    """Counts a refused input as failed, and tells the client that all is well."""

    def poll(self, client_id):
        message = super().poll(client_id)
        if message is not None:
            message.simple_aggregation.close_message.code = 0
        return message


class ClosingIsFailing(Good):
    def close(self, client_id, code, message, now):
        return super().close(client_id, Code.INTERNAL, message, now)


class ReportsNeverFail(Good):
    def reported(self, code, message, now):
        return super().reported(Code.OK, message, now)


class ForgetsToReport(Good):
    def complete(self, now):
        super().complete(now)
        return ()


class KeepsTheFold(Good):
    def abort(self, now):
        super().abort(now)
        return ()


class AbortsAgain(Good):
    def abort(self, now):
        super().abort(now)
        return (AbortFoldEffect(),)


class LeavesThemInFlight(Good):
    """Waits for ever for inputs that do not come back."""

    def tick(self, now):
        self._drain_until = None
        return super().tick(now)


class LeavesThemPending(Good):
    def _close_all(self):
        pass


class CountsLateOnes(Good):
    def folded(self, client_id, code, message, now):
        if self.state() == messages.PROTOCOL_ABORTED:
            self._counts[self._clients[client_id]] += 1
        return super().folded(client_id, code, message, now)


class FoldsLateOnes(Good):
    def receive(self, client_id, message, now):
        if self.state() == messages.PROTOCOL_COMPLETING:
            return (FoldEffect(client_id, message.simple_aggregation.input.inline_bytes),)
        return super().receive(client_id, message, now)


class TellsTwice(Good):
    def poll(self, client_id):
        self._require_begun()
        self._client(client_id)
        return self._messages.get(client_id)


class ReportsTwice(Good):
    def tick(self, now):
        if self.state() == messages.PROTOCOL_COMPLETING:
            return (ReportEffect(),)
        return super().tick(now)


class LosesOne(Good):
    def status(self):
        status = super().status()
        status.num_clients_failed -= status.num_clients_failed > 1
        return status


class Reopens(Good):
    def close(self, client_id, code, message, now):
        effects = super().close(client_id, code, message, now)
        if code is Code.RESOURCE_EXHAUSTED and self._clients[client_id].value == "failed":
            self._counts[self._clients[client_id]] -= 1
            self._clients[client_id] = type(self._clients[client_id]).PENDING
            self._counts[self._clients[client_id]] += 1
            self._pending[client_id] = now
        return effects


class TicksForEver(Good):
    def next_tick(self):
        return 0.0 if self.state() == messages.PROTOCOL_STARTED else super().next_tick()


class ReadsTheClock(Good):
    def tick(self, now):
        return super().tick(time.time())


def kit(cls, **changes):
    fields = {"name": "good", "summary": "a machine", "make": cls}

    class Laws(AggregationProtocolConformance):
        factory = AggregationProtocolFactory(**(fields | changes))
        shrink = False
        derandomize = True
        max_examples = 300

    return Laws()


BROKEN = [
    ("test_the_factory_describes_itself", Good, {"name": ""}),
    ("test_a_call_is_allowed_in_its_states_only", StartsTwice, "start"),
    ("test_a_call_is_allowed_in_its_states_only", AbortsOnce, "abort"),
    ("test_bad_arguments_are_refused", TakesAnything, {}),
    ("test_bad_arguments_are_refused", PythonIndices, {}),
    ("test_clients_are_numbered_in_turn", CountsFromOne, {}),
    ("test_a_message_becomes_an_effect_for_its_client", MixesUpClients, {}),
    ("test_a_message_becomes_an_effect_for_its_client", FoldsTwice, {}),
    (
        "test_an_outcome_shows_in_the_counters_and_in_the_close_message",
        EverythingIsFine,
        Code.ABORTED,
    ),
    (
        "test_an_outcome_shows_in_the_counters_and_in_the_close_message",
        SaysOkay,
        Code.NOT_FOUND,
    ),
    ("test_a_client_may_close_itself", ClosingIsFailing, {}),
    ("test_completing_asks_for_one_report", ForgetsToReport, {}),
    ("test_completing_asks_for_one_report", ReportsNeverFail, {}),
    ("test_aborting_drops_what_was_included", KeepsTheFold, {}),
    ("test_aborting_drops_what_was_included", AbortsAgain, {}),
    ("test_every_client_is_closed_in_the_end", LeavesThemInFlight, {}),
    ("test_every_client_is_closed_in_the_end", LeavesThemPending, {}),
    ("test_a_late_outcome_changes_nothing", CountsLateOnes, {}),
    ("test_a_message_after_the_end_is_answered", FoldsLateOnes, {}),
    ("test_random_histories", TellsTwice, {}),
    ("test_random_histories", ReportsTwice, {}),
    ("test_random_histories", LosesOne, {}),
    ("test_random_histories", Reopens, {}),
    ("test_random_histories", TicksForEver, {}),
    ("test_random_histories", LeavesThemPending, {}),
    ("test_random_histories", AbortsAgain, {}),
    ("test_it_touches_nothing_outside", ReadsTheClock, {}),
]


def name_of(value):
    """Name a parameter alike in every process: without the address of an object."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("law", "cls", "how"), BROKEN, ids=name_of)
def test_the_protocol_kit_catches(law, cls, how):
    # A law that is tried with several arguments fails for the one that the fault is about.
    changes, arguments = (how, ()) if isinstance(how, dict) else ({}, (how,))
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(kit(cls, **changes), law)(*arguments)


def test_every_protocol_law_has_a_broken_machine():
    laws = {name for name in dir(AggregationProtocolConformance) if name.startswith("test_")}
    assert {law for law, _, _ in BROKEN} == laws
