"""Server and clients together, whoever drops out, repeats or lies, against a plain sum."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_core.rounds.machine import InvalidTransition
from fcp_secagg import primitives
from fcp_secagg.client import SecAggClient, UnexpectedMessageError
from fcp_secagg.graphs import FullGraph, HararyGraph
from fcp_secagg.packing import VectorSpec
from fcp_secagg.server import NotReadyError, SecAggServer, SessionEndedError
from fcp_secagg.states import (
    CLIENT_MOVES,
    SERVER_MOVES,
    STATUS_MOVES,
    ClientState,
    ClientStatus,
    DropReason,
    Outcome,
    ServerState,
)

SPECS = [VectorSpec("w", 5, 2**20), VectorSpec("z", 3, 1000003)]


class Session:
    """A server and its clients, one message at a time."""

    def __init__(self, graph, minimum, seed=0, specs=SPECS):
        self.rng = random.Random(seed)
        self.graph, self.specs = graph, specs
        self.server = SecAggServer(graph, specs, minimum)
        self.inputs = [{s.name: self.vector(s) for s in specs} for _ in range(graph.size)]
        self.clients = [
            SecAggClient(graph.degree, graph.threshold, specs, self.rng.randbytes)
            for _ in range(graph.size)
        ]
        #: What each client has to send.
        self.outbox = {}
        self.aborts = {}
        for index, client in enumerate(self.clients):
            client.set_input(self.inputs[index])
            self.outbox[index] = client.start()

    def vector(self, spec):
        return np.array([self.rng.randrange(spec.modulus) for _ in range(spec.length)], np.uint64)

    def send(self, index):
        message = self.outbox.pop(index, None)
        if message is not None:
            for send in self.server.receive(index, message):
                self.aborts[send.client] = send.message

    def proceed(self):
        for send in self.server.proceed():
            if isinstance(send.message, pb.AbortMessage):
                self.aborts[send.client] = send.message
            else:
                answer = self.clients[send.client].receive(send.message)
                if answer is not None:
                    self.outbox[send.client] = answer

    def round(self, gone=()):
        for index in gone:
            self.outbox.pop(index, None)
            self.server.leave(index)
        for index in self.rng.sample(range(self.graph.size), self.graph.size):
            self.send(index)
        self.proceed()

    def check(self, wanted=None):
        assert self.server.state is ServerState.PRNG_RUNNING
        included = self.server.included
        assert wanted is None or included == wanted
        sums = self.server.unmask()
        for spec in self.specs:
            total = sum(self.inputs[i][spec.name].astype(object) for i in included)
            assert sums[spec.name].tolist() == (total % spec.modulus).tolist()


def full(size, threshold):
    return FullGraph(size, threshold)


def circle(size, degree, threshold, seed=0):
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return HararyGraph(order, degree, threshold)


# Drop-outs.


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_as_many_as_the_threshold_allows_may_drop_out_in_any_round(when):
    session = Session(full(7, 4), 4)
    for step in range(4):
        session.round(gone=[1, 3, 6] if step == when else ())
    session.check([0, 2, 4, 5] if when < 3 else list(range(7)))


def test_one_more_ends_the_session_and_all_others_are_told():
    session = Session(full(7, 4), 4)
    session.round()
    session.round()
    session.round(gone=[0, 1, 2, 3])
    assert session.server.state is ServerState.ABORTED
    assert session.server.outcome is Outcome.NOT_ENOUGH_CLIENTS_REMAINING
    assert set(session.aborts) == {4, 5, 6}
    with pytest.raises(SessionEndedError):
        session.server.receive(5, pb.UnmaskingResponse())


def test_drop_outs_in_every_round():
    session = Session(circle(12, 7, 3), 6)
    session.round(gone=[2])
    session.round(gone=[5])
    session.round(gone=[7, 8])
    session.round(gone=[0])
    session.check([0, 1, 3, 4, 6, 9, 10, 11])


def test_whoever_is_silent_is_dropped_when_the_round_ends():
    session = Session(full(5, 3), 3)
    del session.outbox[4]
    session.round()
    assert session.server.reason(4) is DropReason.NO_ADVERTISE_KEYS
    assert not session.aborts[4].early_success
    session.round()
    del session.outbox[0]
    session.round()
    assert session.server.reason(0) is DropReason.NO_MASKED_INPUT
    session.outbox.pop(1, None)
    with pytest.raises(NotReadyError, match="2 of 3"):
        session.round()


def test_a_client_that_need_not_unmask_any_more_is_told_of_its_success():
    session = Session(full(5, 3), 3)
    for _ in range(3):
        session.round()
    del session.outbox[2]
    session.round()
    assert session.server.reason(2) is DropReason.EARLY_SUCCESS
    assert session.aborts[2].early_success
    session.check([0, 1, 2, 3, 4])


@given(st.data())
def test_any_history_ends_with_the_plain_sum_or_with_an_abort(data):
    if data.draw(st.booleans()):
        size = data.draw(st.integers(2, 7))
        graph = full(size, data.draw(st.integers(2, size)))
        minimum = graph.threshold
    else:
        size = data.draw(st.integers(5, 9))
        graph = circle(size, 5, data.draw(st.integers(2, 3)), data.draw(st.integers(0, 9)))
        minimum = data.draw(st.integers(graph.threshold, size))
    session = Session(graph, minimum, data.draw(st.integers(0, 99)))
    server = session.server
    events = st.tuples(
        st.sampled_from(("send", "send", "send", "send", "again", "leave", "abort", "wrong")),
        st.integers(0, size - 1),
    )
    for _ in range(4):
        for event, index in data.draw(st.lists(events, max_size=12)):
            if event == "send":
                session.send(index)
            elif event == "again" and index in session.outbox:
                message = session.outbox.pop(index)
                for _ in range(2):
                    for send in server.receive(index, message):
                        session.aborts[send.client] = send.message
            elif event == "leave":
                server.leave(index)
                session.outbox.pop(index, None)
            elif event == "abort":
                server.receive(index, pb.AbortMessage(diagnostic_info="no"))
                session.outbox.pop(index, None)
            elif event == "wrong":
                server.receive(index, pb.MaskedInputCollectionRequest())
        for index in list(session.outbox):
            session.send(index)
        if not server.ready:
            with pytest.raises(NotReadyError):
                server.proceed()
            return
        session.proceed()
        if server.state is ServerState.ABORTED:
            return
    gone = [
        i for i in range(size) if server.status(i) is ClientStatus.DEAD_AFTER_SHARE_KEYS_RECEIVED
    ]
    # A key is put together of each: of the mask of its own, or of those that it has with others.
    kept = [list(graph.neighbours(index)) for index in (*server.included, *gone)]
    heard = (ClientStatus.UNMASKING_RESPONSE_RECEIVED,)
    heard += (ClientStatus.DEAD_AFTER_UNMASKING_RESPONSE_RECEIVED,)
    enough = all(
        sum(server.status(other) in heard for other in listed) >= graph.threshold for listed in kept
    )
    if enough:
        session.check()
    else:
        # A neighbourhood in which too few are left, although the cohort has enough.
        assert graph.degree < graph.size
        with pytest.raises(ValueError, match="shares are needed"):
            server.unmask()
        assert server.outcome is Outcome.UNHANDLED_ERROR


# What clients may not send.


def sent_by_a_liar(session, index, change):
    message = session.outbox.pop(index)
    change(message)
    return session.server.receive(index, message)


def cleared(field):
    return lambda message: message.pair_of_public_keys.ClearField(field)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cleared("noise_pk"), DropReason.EMPTY_PUBLIC_KEY),
        (cleared("enc_pk"), DropReason.EMPTY_PUBLIC_KEY),
        (
            lambda m: setattr(m.pair_of_public_keys, "enc_pk", b"\x04" + bytes(64)),
            DropReason.INVALID_PUBLIC_KEY,
        ),
        (
            lambda m: setattr(m.pair_of_public_keys, "enc_pk", b"\x02" + b"\xff" * 32),
            DropReason.INVALID_PUBLIC_KEY,
        ),
    ],
)
def test_keys_that_are_none_cost_their_sender(change, reason):
    session = Session(full(4, 3), 3)
    (send,) = sent_by_a_liar(session, 1, change)
    assert isinstance(send.message, pb.AbortMessage)
    assert session.server.reason(1) is reason
    assert session.server.status(1) is ClientStatus.DEAD_BEFORE_SENDING_ANYTHING
    for _ in range(4):
        session.round()
    session.check([0, 2, 3])


def negative(key):
    """Return the key with which everybody agrees on what they agree on with this one."""
    return bytes([key[0] ^ 1]) + key[1:]


@pytest.mark.parametrize("change", [bytes, negative])
def test_keys_of_somebody_else_are_refused(change):
    session = Session(full(4, 3), 3)
    stolen = session.outbox[0].pair_of_public_keys
    session.send(0)
    mine = session.outbox[2].pair_of_public_keys
    mine.noise_pk = change(stolen.noise_pk)
    session.send(2)
    assert session.server.reason(2) is DropReason.INVALID_PUBLIC_KEY


def one_more(message):
    message.encrypted_key_shares.append(b"x")


def own_share(message):
    message.encrypted_key_shares[1] = b"x"


def one_missing(message):
    message.encrypted_key_shares[0] = b""


def long_share(message):
    message.encrypted_key_shares[0] += b"x"


@pytest.mark.parametrize("change", [one_more, own_share, one_missing, long_share])
def test_shares_that_do_not_fit_cost_their_sender(change):
    session = Session(full(4, 3), 3)
    session.round()
    sent_by_a_liar(session, 1, change)
    assert session.server.reason(1) is DropReason.INVALID_SHARE_KEYS_RESPONSE
    for _ in range(3):
        session.round()
    session.check([0, 2, 3])


def vector_missing(message):
    del message.vectors["w"]


def vector_unknown(message):
    message.vectors["x"].encoded_vector = message.vectors["w"].encoded_vector
    del message.vectors["w"]


def vector_long(message):
    message.vectors["w"].encoded_vector += b"\0"


@pytest.mark.parametrize("change", [vector_missing, vector_unknown, vector_long])
def test_masked_input_that_does_not_fit_costs_its_sender(change):
    session = Session(full(4, 3), 3)
    session.round()
    session.round()
    sent_by_a_liar(session, 1, change)
    assert session.server.reason(1) is DropReason.INVALID_MASKED_INPUT
    session.round()
    session.round()
    session.check([0, 2, 3])


def fewer_shares(message):
    del message.noise_or_prf_key_shares[-1]


def short_share(message):
    message.noise_or_prf_key_shares[0].prf_sk_share = b"1234"


def other_key(message):
    message.noise_or_prf_key_shares[0].noise_sk_share = bytes(36)


def no_share(message):
    message.noise_or_prf_key_shares[0].Clear()


@pytest.mark.parametrize("change", [fewer_shares, other_key, no_share])
def test_unmasking_shares_that_do_not_fit_cost_their_sender_and_its_input_stays(change):
    session = Session(full(4, 3), 3)
    for _ in range(3):
        session.round()
    sent_by_a_liar(session, 1, change)
    assert session.server.reason(1) is DropReason.INVALID_UNMASKING_RESPONSE
    session.round()
    session.check([0, 1, 2, 3])


def test_a_share_of_a_wrong_size_is_left_out():
    session = Session(full(4, 3), 3)
    for _ in range(3):
        session.round()
    short_share(session.outbox[1])
    session.round()
    assert session.server.reason(1) is None
    session.check([0, 1, 2, 3])


def test_nobody_is_blamed_for_shares_that_a_neighbour_made_of_a_wrong_size():
    """They are encrypted when they come, so the server cannot tell; the others pass them on."""
    session = Session(full(5, 3), 3)
    session.round()
    shares = pb.PairOfKeyShares(noise_sk_share=bytes(40), prf_sk_share=bytes(32))
    for index, neighbour in enumerate(session.clients[4]._neighbours[:4]):
        session.outbox[4].encrypted_key_shares[index] = primitives.seal(
            neighbour.enc_key, shares.SerializeToString(), session.rng.randbytes
        )
    for _ in range(3):
        session.round()
    assert [session.server.reason(index) for index in range(5)] == [None] * 5
    with pytest.raises(ValueError, match="shares are needed"):
        session.server.unmask()


def test_a_wrong_share_of_a_private_key_is_noticed():
    """It spoils the sum, which nobody is shown."""
    session = Session(full(5, 3), 3)
    session.round()
    session.round()
    session.round(gone=[4])
    session.outbox[0].noise_or_prf_key_shares[4].noise_sk_share = bytes(36)
    session.round()
    with pytest.raises(ValueError, match="wrong share"):
        session.server.unmask()
    assert session.server.outcome is Outcome.UNHANDLED_ERROR


def test_a_wrong_share_of_a_mask_is_left_out_where_there_are_enough_others():
    session = Session(full(5, 3), 3)
    for _ in range(3):
        session.round()
    for other in range(5):
        entry = session.outbox[0].noise_or_prf_key_shares[other]
        entry.prf_sk_share = bytes(36)
    session.round()
    session.check([0, 1, 2, 3, 4])


def test_a_wrong_share_of_a_mask_is_noticed_where_one_is_left_over():
    session = Session(full(5, 4), 4)
    for _ in range(3):
        session.round()
    session.outbox[0].noise_or_prf_key_shares[3].prf_sk_share = bytes(36)
    session.round()
    with pytest.raises(ValueError, match="wrong share"):
        session.server.unmask()


def test_messages_out_of_turn_cost_their_sender():
    session = Session(full(4, 3), 3)
    session.send(0)
    session.server.receive(0, pb.AdvertiseKeys())
    assert session.server.reason(0) is DropReason.ADVERTISE_KEYS_UNEXPECTED
    session.server.receive(1, pb.ShareKeysResponse())
    assert session.server.reason(1) is DropReason.UNEXPECTED_MESSAGE_TYPE
    # Whoever is gone is not heard.
    assert session.server.receive(1, pb.AdvertiseKeys()) == []
    with pytest.raises(SessionEndedError, match="no client 4"):
        session.server.receive(4, pb.AdvertiseKeys())
    with pytest.raises(NotReadyError):
        Session(full(4, 3), 3).server.proceed()


def test_an_abort_from_outside_tells_everybody():
    session = Session(full(4, 3), 3)
    session.round()
    assert {send.client for send in session.server.abort("stop")} == {0, 1, 2, 3}
    assert session.server.outcome is Outcome.EXTERNAL_REQUEST
    with pytest.raises(SessionEndedError):
        session.server.abort("again")


# A server that lies.


def lied_to(request, change, step):
    """Return a client, and how it answers a request of that step after a lie."""
    session = Session(full(5, 3), 3, seed=4)
    for index in range(5):
        session.send(index)
    client = session.clients[1]
    for number in range(step + 1):
        sends = session.server.proceed()
        for send in sends:
            if number == step and send.client == 1:
                change(send.message)
                answer = client.receive(send.message)
                assert isinstance(send.message, request)
                return client, answer
            session.outbox[send.client] = session.clients[send.client].receive(send.message)
        for index in range(5):
            session.send(index)
    raise AssertionError("the step never came")


def few(message):
    del message.pairs_of_public_keys[2:]


def many(message):
    message.pairs_of_public_keys.add(noise_pk=b"x" * 33, enc_pk=b"y" * 33)


def short_id(message):
    message.session_id = message.session_id[:-1]


def odd_key(message):
    message.pairs_of_public_keys[0].noise_pk = b"short"


def me_twice(message):
    message.pairs_of_public_keys[0].CopyFrom(message.pairs_of_public_keys[1])


def other_twice(message):
    message.pairs_of_public_keys[0].CopyFrom(message.pairs_of_public_keys[2])


def other_noise_twice(message):
    message.pairs_of_public_keys[0].noise_pk = message.pairs_of_public_keys[2].noise_pk


def other_noise_negated(message):
    message.pairs_of_public_keys[0].noise_pk = negative(message.pairs_of_public_keys[2].noise_pk)


def other_negated(message):
    other = message.pairs_of_public_keys[2]
    message.pairs_of_public_keys[0].noise_pk = negative(other.noise_pk)
    message.pairs_of_public_keys[0].enc_pk = negative(other.enc_pk)


def my_noise_negated(message):
    message.pairs_of_public_keys[0].noise_pk = negative(message.pairs_of_public_keys[1].noise_pk)


def no_point(message):
    message.pairs_of_public_keys[0].enc_pk = b"\x02" + b"\xff" * 32


def no_noise_point(message):
    message.pairs_of_public_keys[0].noise_pk = b"\x02" + b"\xff" * 32


def me_missing(message):
    message.pairs_of_public_keys[1].Clear()


def most_dead(message):
    for index in (0, 2, 3):
        message.pairs_of_public_keys[index].Clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (few, "fewer than 3"),
        (many, "more than 5"),
        (short_id, "31 bytes"),
        (odd_key, "wrong size"),
        (me_twice, "own keys come twice"),
        (other_twice, "neighbour's keys come twice"),
        (other_noise_twice, "neighbour's keys come twice"),
        (other_noise_negated, "neighbour's keys come twice"),
        (other_negated, "neighbour's keys come twice"),
        (my_noise_negated, "neighbour's keys come twice"),
        (no_point, "no point"),
        (no_noise_point, "no point"),
        (me_missing, "own keys are missing"),
        (most_dead, "2 neighbours are there after round 1"),
    ],
)
def test_a_client_shares_no_keys_with_a_list_that_lies(change, words):
    client, answer = lied_to(pb.ShareKeysRequest, change, 0)
    assert isinstance(answer, pb.AbortMessage)
    assert words in answer.diagnostic_info
    assert client.state is ClientState.ABORTED


def shares_cut(message):
    del message.encrypted_key_shares[-1]


def shares_swapped(message):
    shares = message.encrypted_key_shares
    shares[0], shares[2] = shares[2], shares[0]


def shares_changed(message):
    message.encrypted_key_shares[0] = bytes(60)


def shares_gone(message):
    for index in (0, 2, 3):
        message.encrypted_key_shares[index] = b""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shares_cut, "4 encrypted shares, not 5"),
        (shares_swapped, "cannot be read"),
        (shares_changed, "cannot be read"),
        (shares_gone, "2 neighbours are there after round 2"),
    ],
)
def test_a_client_masks_nothing_for_shares_that_lie(change, words):
    _, answer = lied_to(pb.MaskedInputCollectionRequest, change, 1)
    assert isinstance(answer, pb.AbortMessage)
    assert words in answer.diagnostic_info


def test_a_client_takes_no_share_of_its_own_keys_for_a_neighbours():
    """It could be read, and would be told to the server if it called the neighbour gone."""
    session = Session(full(5, 3), 3)
    session.round()
    mine = session.outbox[1].encrypted_key_shares[0]
    for index in range(5):
        session.send(index)
    (sent,) = [send.message for send in session.server.proceed() if send.client == 1]
    sent.encrypted_key_shares[0] = mine
    answer = session.clients[1].receive(sent)
    assert isinstance(answer, pb.AbortMessage)
    assert "came back as a neighbour's" in answer.diagnostic_info


def dead(*numbers):
    return lambda message: message.dead_3_client_ids.extend(numbers)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dead(2), "gone itself"),
        (dead(6), "no neighbour 6"),
        (dead(0), "no neighbour 0"),
        (dead(1, 1), "twice that neighbour 1 is gone"),
        (dead(1, 3, 4), "2 neighbours are there after round 3"),
    ],
)
def test_a_client_unmasks_nothing_for_a_lie_about_who_is_gone(change, words):
    client, answer = lied_to(pb.UnmaskingRequest, change, 2)
    assert isinstance(answer, pb.AbortMessage)
    assert words in answer.diagnostic_info
    assert client.state is ClientState.ABORTED


def test_a_client_gives_away_one_share_of_each_neighbour_and_only_once():
    client, answer = lied_to(pb.UnmaskingRequest, dead(1), 2)
    kinds = [e.WhichOneof("oneof_shares") for e in answer.noise_or_prf_key_shares]
    assert kinds == ["noise_sk_share"] + ["prf_sk_share"] * 4
    with pytest.raises(UnexpectedMessageError):
        client.receive(pb.UnmaskingRequest(dead_3_client_ids=[3]))


def test_a_neighbour_that_was_gone_cannot_be_called_dead_again():
    session = Session(full(5, 3), 3)
    session.round(gone=[4])
    session.round()
    session.round()
    answer = session.clients[0]
    assert answer.state is ClientState.COMPLETED
    session = Session(full(5, 3), 3)
    session.round(gone=[4])
    session.round()
    for index in range(4):
        session.send(index)
    (send, *_) = session.server.proceed()
    send.message.dead_3_client_ids.append(5)
    answer = session.clients[0].receive(send.message)
    assert "gone before round 3" in answer.diagnostic_info


def test_a_session_cannot_be_run_twice_with_the_same_keys():
    """Neither by the same requests again, nor by another list after the masks were made."""
    session = Session(full(4, 3), 3)
    for index in range(4):
        session.send(index)
    requests = {send.client: send.message for send in session.server.proceed()}
    client = session.clients[0]
    first = client.receive(requests[0])
    assert isinstance(first, pb.ShareKeysResponse)
    with pytest.raises(UnexpectedMessageError):
        client.receive(requests[0])
    with pytest.raises(UnexpectedMessageError):
        client.start()
    again = SecAggClient(4, 3, SPECS, session.rng.randbytes)
    again.set_input(session.inputs[0])
    again.start()
    # A new session of the same device has other keys: it is not in the old list.
    assert "own keys are missing" in again.receive(requests[0]).diagnostic_info


def test_secrets_are_overwritten_once_they_are_not_needed():
    session = Session(full(4, 3), 3)
    session.round()
    client = session.clients[0]
    own, noise, enc = client._self_key, client._noise, client._enc
    assert any(own)
    session.round()
    assert client.state is ClientState.R3_UNMASKING
    assert not any(own)
    assert not any(noise.private)
    assert not any(enc.private)
    session.round()
    assert client._neighbours == []
    assert client._own_share == b""


def test_keys_are_fresh_in_each_session():
    rng = random.Random(1)
    keys = set()
    for _ in range(3):
        pair = SecAggClient(3, 2, SPECS, rng.randbytes).start().pair_of_public_keys
        keys |= {pair.noise_pk, pair.enc_pk}
    assert len(keys) == 6


# The input.


def test_the_input_may_come_at_any_time_until_it_is_needed():
    session = Session(full(3, 2), 2)
    late = SecAggClient(3, 2, SPECS, session.rng.randbytes)
    session.clients[0] = late
    session.outbox[0] = late.start()
    session.round()
    session.round()
    assert late.state is ClientState.R2_MASKED_INPUT_COLL_WAITING_FOR_INPUT
    session.outbox[0] = late.set_input(session.inputs[0])
    session.round()
    session.round()
    session.check([0, 1, 2])
    with pytest.raises(UnexpectedMessageError):
        late.set_input(session.inputs[0])


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({}, "expected the vectors"),
        ({"w": np.zeros(4, np.uint64), "z": np.zeros(3, np.uint64)}, r"uint64\[5\]"),
        ({"w": np.zeros(5, np.int64), "z": np.zeros(3, np.uint64)}, r"uint64\[5\]"),
        ({"w": np.full(5, 2**20, np.uint64), "z": np.zeros(3, np.uint64)}, "not below"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(vectors, words):
    with pytest.raises(ValueError, match=words):
        SecAggClient(3, 2, SPECS, random.Random(1).randbytes).set_input(vectors)


@pytest.mark.parametrize("threshold", [0, 1, 4])
def test_a_threshold_that_protects_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        SecAggClient(3, threshold, SPECS, random.Random(1).randbytes)


def test_a_client_can_be_aborted_once():
    client = SecAggClient(3, 2, SPECS, random.Random(1).randbytes)
    client.start()
    assert client.abort("the battery is low").diagnostic_info == "the battery is low"
    with pytest.raises(InvalidTransition):
        client.abort("again")
    with pytest.raises(UnexpectedMessageError):
        client.receive(pb.AbortMessage())


def test_the_servers_abort_ends_a_client():
    for early, state in ((True, ClientState.COMPLETED), (False, ClientState.ABORTED)):
        client = SecAggClient(3, 2, SPECS, random.Random(1).randbytes)
        client.start()
        assert client.receive(pb.AbortMessage(early_success=early)) is None
        assert client.state is state


# Tables.


@pytest.mark.parametrize("moves", [SERVER_MOVES, STATUS_MOVES, CLIENT_MOVES])
def test_tables_name_each_state_and_lead_to_an_end(moves):
    assert {after for following in moves.values() for after in following} <= moves.keys()
    reached = {next(iter(moves))}
    for _ in moves:
        reached |= {after for state in reached for after in moves[state]}
    assert reached == set(moves)


def test_the_session_id_is_of_all_clients_in_order():
    session = Session(full(3, 2), 2)
    keys = [session.outbox[index].pair_of_public_keys for index in range(3)]
    session.round(gone=[1])
    wanted = [(k.noise_pk, k.enc_pk) for k in keys]
    wanted[1] = (b"", b"")
    assert session.server.session_id == primitives.session_id(wanted)
