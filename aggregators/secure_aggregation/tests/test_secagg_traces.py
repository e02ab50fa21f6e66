"""Our server, given what recorded clients sent, sends what the recorded server sent."""

import base64
import json
import random
from pathlib import Path

import numpy as np
import pytest
from secagg_sessions import unmask

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg.client import SecAggClient
from fcp_secagg.graphs import FullGraph, HararyGraph
from fcp_secagg.masks import add
from fcp_secagg.packing import VectorSpec, pack
from fcp_secagg.primitives import session_id
from fcp_secagg.server import SecAggServer
from fcp_secagg.states import Outcome, ServerState

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
STEPS = ("advertise_keys", "share_keys_response", "masked_input_response", "unmasking_response")


class Trace:
    def __init__(self, name):
        given = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
        self.size = given["clients"]
        self.minimum = given["minimum_surviving"]
        self.degree = given["neighbours_of_each_client"]
        self.threshold = given["threshold_of_each_client"]
        self.full = given["variant"] == "fullgraph"
        self.circle = given.get("circle")
        self.specs = [VectorSpec(v["name"], v["length"], v["modulus"]) for v in given["vectors"]]
        self.sums = given["sums"]
        self.dropped = {int(client): step for client, step in given["dropped"].items()}
        #: What clients sent and were sent, by the kind of the message and the client.
        self.sent = {step: {} for step in STEPS}
        self.received = {}
        for item in given["messages"]:
            data = base64.b64decode(item["message"])
            if item["direction"] == "client_to_server":
                message = pb.ClientToServerWrapperMessage.FromString(data)
                self.sent[message.WhichOneof("message_content")][item["client"]] = message
            else:
                message = pb.ServerToClientWrapperMessage.FromString(data)
                kind = message.WhichOneof("message_content")
                self.received.setdefault(kind, {})[item["client"]] = message

    def graph(self):
        if self.full:
            return FullGraph(self.size, self.threshold)
        if self.circle is not None:
            return HararyGraph(self.circle, self.degree, self.threshold)
        keys = {
            message.advertise_keys.pair_of_public_keys.noise_pk: client
            for client, message in self.sent["advertise_keys"].items()
        }
        after = {}
        for client, message in self.received["share_keys_request"].items():
            pairs = message.share_keys_request.pairs_of_public_keys
            after[client] = keys[pairs[self.degree // 2 + 1].noise_pk]
        order = [0]
        while len(order) < self.size:
            order.append(after[order[-1]])
        return HararyGraph(order, self.degree, self.threshold)


def content(message):
    return getattr(message, message.WhichOneof("message_content"))


@pytest.mark.parametrize("name", NAMES)
def test_our_server_sends_what_theirs_sent_and_comes_to_the_same_sums(name):
    trace = Trace(name)
    server = SecAggServer(trace.graph(), trace.specs, trace.minimum)
    answers = ("share_keys_request", "masked_input_request", "unmasking_request", None)
    for step, (kind, answer) in enumerate(zip(STEPS, answers, strict=True)):
        for client, message in trace.sent[kind].items():
            if trace.dropped.get(client) != step:
                assert server.receive(client, content(message)) == []
        for client, when in trace.dropped.items():
            if when == step:
                server.leave(client)
        assert server.ready
        assert not server.waits
        sent = {send.client: send.message for send in server.proceed()}
        wanted = trace.received.get(answer, {})
        if kind == "advertise_keys":
            # A server that is told of it later may have sent to one that was gone already.
            assert {c for c in wanted if trace.dropped.get(c) != step} <= sent.keys()
        else:
            assert sent.keys() == wanted.keys()
        for client, message in sent.items():
            theirs = content(wanted[client])
            assert message.SerializeToString(deterministic=True) == theirs.SerializeToString(
                deterministic=True
            )
    assert server.state is ServerState.PRNG_RUNNING
    sums = unmask(server)
    assert {n: v.tolist() for n, v in sums.items()} == trace.sums
    assert server.outcome is Outcome.SUCCESS


@pytest.mark.parametrize("name", NAMES)
def test_the_session_id_is_theirs(name):
    trace = Trace(name)
    keys = []
    for client in range(trace.size):
        pair = trace.sent["advertise_keys"][client].advertise_keys.pair_of_public_keys
        gone = trace.dropped.get(client) == 0
        keys.append((b"", b"") if gone else (pair.noise_pk, pair.enc_pk))
    for message in trace.received["share_keys_request"].values():
        assert message.share_keys_request.session_id == session_id(keys)


@pytest.mark.parametrize("name", NAMES)
def test_our_clients_messages_have_the_sizes_and_fields_of_theirs(name):
    """The same session with our clients: what they send differs in what is random, and no more."""
    trace = Trace(name)
    rng = random.Random(name)
    given = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    server = SecAggServer(trace.graph(), trace.specs, trace.minimum)
    clients = [
        SecAggClient(trace.degree, trace.threshold, trace.specs, rng.randbytes)
        for _ in range(trace.size)
    ]
    waiting = {index: client.start() for index, client in enumerate(clients)}
    for index, client in enumerate(clients):
        inputs = given["inputs"][str(index)]
        client.set_input({n: np.array(v, np.uint64) for n, v in inputs.items()})
    for step, kind in enumerate(STEPS):
        for index, ours in waiting.items():
            if trace.dropped.get(index) == step:
                server.leave(index)
                continue
            theirs = content(trace.sent[kind][index])
            assert ours.ByteSize() == theirs.ByteSize()
            assert shape(ours) == shape(theirs)
            assert server.receive(index, ours) == []
        waiting = {s.client: clients[s.client].receive(s.message) for s in server.proceed()}
    assert {n: v.tolist() for n, v in unmask(server).items()} == trace.sums


def is_repeated(field):
    """Whether a field is: newer protobuf has no label, older has nothing else."""
    found = getattr(field, "is_repeated", None)
    return field.label == field.LABEL_REPEATED if found is None else found


def shape(message):
    """Return what fields a message has, and how long their bytes are."""
    found = []
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            found.append((field.name, {key: shape(item) for key, item in value.items()}))
        elif is_repeated(field):
            found.append(
                (field.name, [len(v) if isinstance(v, bytes) else shape(v) for v in value])
            )
        elif field.message_type:
            found.append((field.name, shape(value)))
        else:
            found.append((field.name, len(value)))
    return found


def test_a_masked_vector_has_the_size_that_packing_gives():
    trace = Trace("full-4")
    for message in trace.sent["masked_input_response"].values():
        for spec in trace.specs:
            encoded = message.masked_input_response.vectors[spec.name].encoded_vector
            assert len(encoded) == spec.packed_size
            assert pack(add(zeros(spec), zeros(spec), spec), spec) == bytes(spec.packed_size)


def zeros(spec):
    return np.zeros(spec.length, np.uint64)
