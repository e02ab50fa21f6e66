"""Clients, and a server, that lie: who pays for it."""

import pytest
from secagg_sessions import Session, dead, full, lied_to, unmask

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg import primitives
from fcp_secagg.server import NotReadyError, SessionEndedError
from fcp_secagg.states import ClientState, ClientStatus, DropReason, Outcome


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
        unmask(session.server)


def test_a_wrong_share_of_a_private_key_is_noticed():
    """It spoils the sum, which nobody is shown."""
    session = Session(full(5, 3), 3)
    session.round()
    session.round()
    session.round(gone=[4])
    session.outbox[0].noise_or_prf_key_shares[4].noise_sk_share = bytes(36)
    session.round()
    with pytest.raises(ValueError, match="wrong share"):
        unmask(session.server)
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
        unmask(session.server)


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
