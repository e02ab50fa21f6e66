"""Server and clients together, whoever drops out, repeats or lies, against a plain sum."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secagg_sessions import Session, full, unmask

from fcp_core.protocol.protos import secagg_messages_pb2 as pb
from fcp_secagg.graphs import HararyGraph
from fcp_secagg.server import NotReadyError, SessionEndedError
from fcp_secagg.states import (
    ClientStatus,
    DropReason,
    Outcome,
    ServerState,
)


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


@pytest.mark.slow
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
            unmask(server)
        assert server.outcome is Outcome.UNHANDLED_ERROR
