"""Secrets, inputs and ends of sessions."""

import random

import numpy as np
import pytest
from secagg_sessions import SPECS, Session, dead, full, lied_to

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_core.rounds.machine import InvalidTransition
from fcp_secagg import primitives
from fcp_secagg.client import SecAggClient, UnexpectedMessageError
from fcp_secagg.states import (
    CLIENT_MOVES,
    SERVER_MOVES,
    STATUS_MOVES,
    ClientState,
)


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
