"""The simple protocol's machine: what it answers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fcp_aggregators.plugin import fcp_register_aggregation_protocols
from fcp_core.protocol.protos import aggregations_pb2 as pb
from fcp_core.protocol.protos import common_pb2, task_assignments_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import Accumulate, Answer, Call, Drop, Upload

(SIMPLE,) = fcp_register_aggregation_protocols()
START, SUBMIT = "StartAggregationDataUpload", "SubmitAggregationResult"


def tickets(client):
    return SimpleNamespace(
        client_token=f"token-{client}",
        upload_name=lambda slot: f"{slot}-{client}",
        forwarding=common_pb2.ForwardingInfo(target_uri_prefix="calls"),
        upload_forwarding=common_pb2.ForwardingInfo(target_uri_prefix="uploads"),
    )


def start(machine, client, now=0.0):
    request = pb.StartAggregationDataUploadRequest()
    return machine.receive(Call(client, START, request, tickets(client)), now)


def upload(machine, client, now=1.0):
    assert machine.uploaded(Upload(client, "checkpoint", 4), now) == ()


def submit(machine, client, now=1.0, name=None):
    name = f"checkpoint-{client}" if name is None else name
    request = pb.SubmitAggregationResultRequest(resource_name=name)
    return machine.receive(Call(client, SUBMIT, request, tickets(client)), now)


def contribute(machine, client, began, now):
    start(machine, client, began)
    upload(machine, client, now)
    assert submit(machine, client, now) == [Accumulate((client,), slot="checkpoint")]


def refused(code, match, function, *args, **kwargs):
    with pytest.raises(StatusError, match=match) as caught:
        function(*args, **kwargs)
    assert caught.value.code is code


def lost(effects, client):
    """Whether a device is dropped since the server knows nothing of its upload."""
    (effect,) = effects
    return (
        isinstance(effect, Drop)
        and (effect.assignment, effect.code) == (client, Code.ABORTED)
        and "upload is lost" in effect.message
    )


def test_what_the_plugin_says_of_it():
    assert (SIMPLE.name, SIMPLE.aborting) == ("simple", ("AbortAggregation",))
    assert SIMPLE.services == ("google.internal.federatedcompute.v1.Aggregations",)
    machine = SIMPLE.make({})
    assert machine.concluding == (SUBMIT,)
    assert (machine.reads, machine.resumable) == (False, True)
    assignment = task_assignments_pb2.TaskAssignment()
    machine.describe(assignment)
    # With confidential aggregation switched on, a device must find it set.
    assert assignment.WhichOneof("aggregation_type") == "aggregation_info"


def test_a_contribution_from_start_to_answer():
    machine = SIMPLE.make({})
    (answer,) = start(machine, "a")
    assert (answer.assignment, answer.method) == ("a", START)
    assert answer.response.client_token == "token-a"
    assert answer.response.resource.resource_name == "checkpoint-a"
    assert answer.response.resource.data_upload_forwarding_info.target_uri_prefix == "uploads"
    assert answer.response.aggregation_protocol_forwarding_info.target_uri_prefix == "calls"
    upload(machine, "a")
    assert submit(machine, "a") == [Accumulate(("a",), slot="checkpoint")]
    response = pb.SubmitAggregationResultResponse()
    assert machine.accumulated(("a",), None, 2.0) == [Answer("a", SUBMIT, response)]
    assert machine.next_tick() is None


def test_a_refused_contribution_is_answered_by_the_core():
    machine = SIMPLE.make({})
    contribute(machine, "a", 0.0, 1.0)
    assert machine.accumulated(("a",), StatusError(Code.INVALID_ARGUMENT, "bad"), 2.0) == ()


def test_a_submission_of_another_upload_or_of_nothing_can_be_mended():
    machine = SIMPLE.make({})
    start(machine, "a")
    for name in ("", "other", "checkpoint-b"):
        refused(Code.INVALID_ARGUMENT, "is not the one", submit, machine, "a", name=name)
    refused(Code.ABORTED, "nothing has been uploaded", submit, machine, "a")
    upload(machine, "a")
    refused(Code.INVALID_ARGUMENT, "is not the one", submit, machine, "a", name="other")
    assert submit(machine, "a") == [Accumulate(("a",), slot="checkpoint")]


def test_after_a_restart_an_upload_goes_on_and_a_lost_one_is_no_fault_of_the_device():
    machine = SIMPLE.make({})
    assert lost(submit(machine, "a"), "a")
    upload(machine, "b")
    assert submit(machine, "b") == [Accumulate(("b",), slot="checkpoint")]


def test_who_left_is_forgotten():
    machine = SIMPLE.make({})
    start(machine, "a")
    upload(machine, "a")
    assert machine.left("a", Code.CANCELLED, 1.0) == ()
    assert machine.left("a", Code.CANCELLED, 1.0) == ()
    assert lost(submit(machine, "a"), "a")


class AnySequence(RuleBasedStateMachine):
    """Whatever devices do, and however often, each is accumulated at most once."""

    CLIENTS = st.sampled_from("abcd")

    def __init__(self):
        super().__init__()
        self.machine = SIMPLE.make({})
        self.now = 0.0
        self.stages = {}
        self.over = set()

    def act(self, client):
        """Return where a device stands; None: it is over and the core takes no more calls."""
        return None if client in self.over else self.stages.get(client, "new")

    @rule(client=CLIENTS)
    def start(self, client):
        if self.act(client) == "new":
            (answer,) = start(self.machine, client, self.now)
            assert answer.assignment == client
            self.stages[client] = "started"

    @rule(client=CLIENTS)
    def upload(self, client):
        if self.act(client) == "started":
            upload(self.machine, client, self.now)
            self.stages[client] = "uploaded"

    @rule(client=CLIENTS)
    def submit(self, client):
        stage = self.act(client)
        if stage == "uploaded":
            (effect,) = submit(self.machine, client, self.now)
            assert effect == Accumulate((client,), slot="checkpoint")
            self.stages[client] = "submitted"
        elif stage == "started":
            refused(Code.ABORTED, "nothing", submit, self.machine, client, self.now)
        elif stage == "new":
            assert lost(submit(self.machine, client, self.now), client)
            self.machine.left(client, Code.ABORTED, self.now)
            self.over.add(client)

    @rule(client=CLIENTS, error=st.none() | st.just(StatusError(Code.INTERNAL, "")))
    def accumulated(self, client, error):
        if self.act(client) == "submitted":
            effects = self.machine.accumulated((client,), error, self.now)
            assert len(effects) == (error is None)
            self.over.add(client)

    @rule(client=CLIENTS)
    def leave(self, client):
        if self.act(client) in ("started", "uploaded"):
            assert self.machine.left(client, Code.CANCELLED, self.now) == ()
            self.over.add(client)

    @invariant()
    def it_needs_no_tick(self):
        assert self.machine.next_tick() is None


AnySequence.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAnySequence = AnySequence.TestCase
