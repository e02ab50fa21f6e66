"""Device sessions: their states, whose they are, what their weights mean, and their end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import InvalidTransition
from fcp_core.rounds.policies import CheckIn
from fcp_core.rounds.session import (
    DeviceSession,
    Sessions,
    SessionState,
    assignment_id,
)
from fcp_core.rounds.token_parts import principal_of, sender_of


def session(name="s", expires=10.0, **more):
    return DeviceSession(
        name, b"k" * 16, CheckIn("p", "1", "", True, True), expires=expires, **more
    )


def over(found):
    """Return why a session has ended; None if it goes on."""
    try:
        found.check()
    except StatusError as error:
        return f"{error.code.name}: {error.message}"
    return None


def test_from_check_in_to_a_task():
    found = session()
    found.report_eligibility(Code.OK)
    found.wait("candidate")
    assert (found.state, found.candidate, over(found)) == (SessionState.WAITING, "candidate", None)
    found.end("it is given up")
    assert found.state is SessionState.WAITING
    found.assign("aggregation")
    assert (found.state, found.aggregation_id) == (SessionState.ASSIGNED, "aggregation")
    assert over(found) is None
    for call in (lambda: found.wait("again"), lambda: found.assign("another")):
        with pytest.raises(InvalidTransition):
            call()
    assert (found.candidate, found.aggregation_id) == ("candidate", "aggregation")


@pytest.mark.parametrize(
    ("state", "why"), [(SessionState.REJECTED, "rejected"), (SessionState.CANCELLED, "cancelled")]
)
def test_who_was_sent_away_checks_in_again(state, why):
    found = session()
    found.wait("candidate")
    found.move(state)
    assert why in over(found)
    with pytest.raises(StatusError, match=why):
        found.wait("again")
    found.end("later")
    assert why in over(found)


def test_the_first_end_and_the_first_report_count():
    found = session()
    found.report_eligibility(Code.INTERNAL)
    assert found.state is SessionState.ENDED
    found.report_eligibility(Code.OK)
    found.end("later")
    assert over(found).startswith("ABORTED: ")
    assert "failed with INTERNAL" in over(found)
    assert found.eligibility is Code.INTERNAL
    busy = session()
    busy.assigned_any = True
    busy.report_eligibility(Code.INTERNAL)
    assert over(busy) is None


def test_weights_are_those_reported_or_of_what_needs_no_evaluation():
    free = session()
    bound = session(offered=frozenset({"a", "b"}), unconditional=frozenset({"a"}))
    assert free.weights(None) is None
    assert bound.weights(None) == {"a": 1.0}
    assert bound.weights({"b": 0.5}) == {"b": 0.5}


@pytest.mark.parametrize("plan_alone", [False, True])
def test_weights_count_for_tasks_that_were_offered(plan_alone):
    found = session(
        offered=frozenset({"a", "free"}), unconditional=frozenset({"free"}), plan_alone=plan_alone
    )
    assert found.weights(None) == {"free": 1.0}
    weights = found.weights({"a": 0.5, "free": 0.0, "later": 1.0})
    # A plan that runs alone does not know of the tasks that it was not asked about.
    assert weights == {"a": 0.5, "free": 1.0 if plan_alone else 0.0}
    anything = session(offered=frozenset({"a"}))
    assert anything.weights({"later": 1.0}) == {"later": 1.0}


@settings(deadline=None)
@given(st.none() | st.text(st.characters(exclude_characters="\x1f")), st.none() | st.binary())
def test_a_sender_has_a_principal_and_perhaps_a_certificate(principal, certificate):
    sender = sender_of(principal, certificate)
    if certificate is None:
        assert sender == principal
    else:
        assert sender != sender_of(principal, certificate + b"x")
    assert principal_of(sender) == (principal if certificate is None else principal or None)


def test_an_assignment_follows_from_the_session_and_the_task():
    first = assignment_id(b"k" * 16, "aggregation")
    assert first == assignment_id(b"k" * 16, "aggregation")
    assert len(bytes.fromhex(first)) == 16
    assert len({first, assignment_id(b"l" * 16, "aggregation"), assignment_id(b"k" * 16, "b")}) == 3


def test_sessions_expire_are_remembered_and_then_forgotten():
    expired, changes = [], []
    found = Sessions(
        *(10.0, 5.0, lambda session, now: expired.append((session, now))),
        lambda sessions: lambda: changes.append(sessions.next_tick()),
    )
    idle, waiting, busy = session("i"), session("w", 11.0), session("b", 12.0)
    waiting.wait("candidate")
    busy.wait("candidate")
    busy.assign("aggregation")
    for each in (idle, waiting, busy):
        found.open(each)
    assert changes == [10.0]  # those after it are due later
    found.tick(9.9)
    assert over(idle) is None
    found.tick(12.0)
    assert "expired" in over(idle)
    assert expired == [(waiting, 12.0)]
    assert over(busy) is None
    assert list(found) == [idle, waiting, busy]
    assert found.next_tick() == 15.0
    found.tick(16.0)
    assert (found.get("i"), found.get("w"), found.get("b")) == (None, None, busy)
    found.tick(17.0)
    assert (len(found), found.next_tick()) == (0, None)


def test_what_was_over_long_ago_goes_at_once():
    """A server that slept tells nobody that he expired who does not ask any more."""
    expired = []
    found = Sessions(10.0, 5.0, lambda session, now: expired.append(session))
    waiting = session("w")
    waiting.wait("candidate")
    found.open(waiting)
    found.tick(100.0)
    assert (len(found), expired) == (0, [])
