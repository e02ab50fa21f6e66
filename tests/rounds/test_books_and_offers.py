"""Sessions, operations, expiring dictionaries, offers and pacing."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.protos import plan_pb2, task_assignments_pb2
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, make_offer, spec_resource
from fcp_core.rounds.expiring import Expiring
from fcp_core.rounds.operations import OperationBook, operation_name
from fcp_core.rounds.pacing import CheckInRate, duration, window_message
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, OfferedTask, RetryWindow
from fcp_core.rounds.sessions import DeviceSession, SessionBook, SessionState
from fcp_core.rounds.tasks import AssignmentMode

POPULATION = "p"


def check_in(multiple=True, native=True, principal=None):
    return CheckIn(POPULATION, "1", "", multiple, native, principal=principal)


def code_of(call, *args):
    try:
        call(*args)
    except StatusError as error:
        return error.code
    return Code.OK


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=30),
    st.integers(0, 10),
)
def test_expiring_is_a_dictionary_with_ends(steps, now):
    expiring, model = Expiring(), {}
    for key, expires, put in steps:
        if put:
            expiring.put(key, (key, expires), expires)
            model[key] = expires
        else:
            expiring.pop(key)
            model.pop(key, None)
    assert len(expiring) == len(model)
    assert expiring.next_expiry() == min(model.values(), default=None)
    due = {key for key, expires in model.items() if expires <= now}
    assert {key for key, _ in expiring.pop_due(now)} == due
    assert {key for key, _ in expiring} == set(model) - due
    assert all((key in expiring) == (key in model and key not in due) for key in "abc")


def test_an_operation_is_done_once_and_forgotten_later():
    book = OperationBook(retention=10.0)
    name = operation_name("u")
    metadata = task_assignments_pb2.StartTaskAssignmentMetadata(polling_interval=duration(0.5))
    book.pending(name, metadata, expires=100.0)
    assert not book.get(name).done
    response = task_assignments_pb2.StartTaskAssignmentResponse()
    assert book.finish(name, response, 5.0)
    assert not book.finish(name, StatusError(Code.INTERNAL, "late"), 5.0)
    assert not book.cancel(name, 5.0)
    assert book.get(name).WhichOneof("result") == "response"
    assert book.next_expiry() == 15.0
    assert book.pop_due(14.9) == []
    assert book.pop_due(15.0) == [name]
    assert code_of(book.get, name) is Code.NOT_FOUND
    assert code_of(book.cancel, name, 5.0) is Code.NOT_FOUND
    assert not book.finish(name, response, 5.0)


def test_a_cancelled_operation_says_so():
    book = OperationBook(retention=10.0)
    book.pending("operations/u", task_assignments_pb2.StartTaskAssignmentMetadata(), 100.0)
    assert book.cancel("operations/u", 1.0)
    assert book.get("operations/u").error.code == Code.CANCELLED


def test_a_session_goes_through_its_states():
    session = DeviceSession("s", check_in())
    assert session.state is SessionState.CHECKED_IN
    session.report_eligibility(Code.OK)
    session.report_eligibility(Code.INTERNAL)
    session.wait("operations/s")
    assert session.state is SessionState.WAITING
    session.assign("a", "1")
    session.assign("b", "2")
    assert session.state is SessionState.ASSIGNED
    session.release("a")
    assert session.state is SessionState.ASSIGNED
    session.release("b")
    session.release("b")
    assert session.state is SessionState.CHECKED_IN
    session.end("enough")
    session.end("later")
    assert session.state is SessionState.ENDED
    with pytest.raises(StatusError, match="enough"):
        session.check(None)


def test_a_rejection_ends_a_session_only_if_nothing_is_left_of_it():
    alone, busy = DeviceSession("s", check_in()), DeviceSession("t", check_in())
    busy.assign("a", "1")
    for session in (alone, busy):
        session.wait("operations/s")
        session.stop_waiting("rejected")
    assert alone.state is SessionState.ENDED
    assert busy.state is SessionState.ASSIGNED


def test_weights_are_those_reported_or_of_what_needs_no_evaluation():
    free = DeviceSession("s", check_in())
    bound = DeviceSession("s", check_in(), frozenset({"a", "b"}), frozenset({"a"}))
    assert free.weights(None) is None
    assert bound.weights(None) == {"a": 1.0}
    assert bound.weights({"b": 0.5}) == {"b": 0.5}


def test_sessions_expire_are_remembered_and_then_forgotten():
    book = SessionBook(timeout=10.0, retention=5.0)
    idle, waiting, busy = (DeviceSession(name, check_in()) for name in ("i", "w", "b"))
    waiting.wait("operations/w")
    busy.assign("a", "1")
    for session in (idle, waiting, busy):
        assert book.open(session, 0.0) == 15.0
    book.restore("lost", POPULATION, 12.0)
    assert book.next_tick() == 10.0
    assert book.tick(9.9) == ([], [])
    assert book.tick(10.0) == ([waiting], [])
    assert idle.ended is not None
    assert busy.ended is None
    assert code_of(book.find, POPULATION, "lost") is Code.ABORTED
    assert code_of(book.find, "other", "lost") is Code.NOT_FOUND
    assert code_of(book.find, "other", "b") is Code.NOT_FOUND
    assert book.find(POPULATION, "b") is busy
    assert book.knows("lost")
    assert book.knows("b")
    expired, forgotten = book.tick(15.0)
    assert (expired, sorted(forgotten)) == ([], ["b", "i", "lost", "w"])
    assert code_of(book.find, POPULATION, "b") is Code.NOT_FOUND
    assert book.next_tick() is None


class Policy(EligibilityPolicy):
    def __init__(self, *by_name):
        self.by_name = dict(by_name)

    def policies(self, population, task, now):
        return self.by_name.get(task.name, ())


def spec(name, period):
    made = eligibility_pb2.EligibilityPolicyEvalSpec(name=name, min_version=1)
    made.swor_policy.min_period.CopyFrom(duration(period))
    return made


SINGLE, MULTIPLE = AssignmentMode.SINGLE, AssignmentMode.MULTIPLE


def offer_to(device, tasks, policy, plan=None):
    return make_offer(device, [(task, [policy]) for task in tasks], 0.0, plan)


def test_an_offer_lists_each_name_once_and_equal_policies_once():
    tasks = [
        OfferedTask("a", SINGLE),
        OfferedTask("a", SINGLE),
        OfferedTask("b", MULTIPLE),
        OfferedTask("c", SINGLE),
    ]
    policy = Policy(("a", [spec("swor", 1)]), ("b", [spec("swor", 2), spec("swor", 1)]))
    offer = offer_to(check_in(), tasks, policy)
    infos = {i.task_name: list(i.eligibility_policy_indices) for i in offer.spec.task_info}
    assert infos == {"a": [0], "b": [1, 0], "c": []}
    assert [p.name for p in offer.spec.eligibility_policies] == ["swor", "swor-2"]
    assert offer.names == {"a", "b", "c"}
    assert offer.unconditional == {"c"}


def test_a_device_is_offered_only_what_it_can_evaluate_and_take():
    tasks = [OfferedTask("a", SINGLE), OfferedTask("b", MULTIPLE), OfferedTask("c", SINGLE)]
    policy = Policy(("a", [spec("swor", 1)]))
    plain = offer_to(check_in(multiple=False, native=False), tasks, policy)
    assert plain.spec is None
    assert plain.names == plain.unconditional == {"c"}
    native = offer_to(check_in(multiple=False), tasks, policy)
    assert [i.task_name for i in native.spec.task_info] == ["a", "c"]
    several = offer_to(check_in(native=False), tasks, policy)
    assert [i.task_name for i in several.spec.task_info] == ["b", "c"]


def plan_spec(name="mine"):
    made = eligibility_pb2.EligibilityPolicyEvalSpec(name=name, min_version=1)
    made.tf_custom_policy.SetInParent()
    return made


def test_a_device_that_evaluates_no_policies_goes_by_the_plan_where_that_says_all():
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    plan = EligibilityTask(message.SerializeToString(), b"x", covers=["covered"])
    by_name = {
        "plan": [plan_spec(), plan_spec("another")],
        "covered": [plan_spec(), spec("covered", 1)],
        "native": [plan_spec(), spec("swor", 1)],
        "free": [],
        "many": [plan_spec()],
        "many_free": [],
    }
    tasks = [OfferedTask(name, MULTIPLE if "many" in name else SINGLE) for name in by_name]
    policy = Policy(*by_name.items())
    plain = check_in(native=False)
    offer = offer_to(plain, tasks, policy, plan)
    assert offer.plan_alone
    assert offer.asks_plan
    assert offer.spec is None
    assert offer.names == {"plan", "covered", "free"}
    assert offer.unconditional == {"free"}
    # It gets no plan that says nothing, and MULTIPLE tasks then.
    for other in (offer_to(plain, tasks, policy), offer_to(plain, tasks[2:], policy, plan)):
        assert not other.plan_alone
        assert not other.asks_plan
        assert [info.task_name for info in other.spec.task_info] == ["free", "many_free"]
    native = offer_to(check_in(), tasks, policy, plan)
    assert native.asks_plan
    assert native.names == set(by_name)
    assert not offer_to(check_in(), tasks[3:4], policy, plan).asks_plan


_KINDS = {"native": spec("native", 1), "covered": spec("covered", 1), "plan": plan_spec()}


@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.tuples(st.sampled_from([SINGLE, MULTIPLE]), st.sets(st.sampled_from(sorted(_KINDS)))),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 2)),
)
def test_nobody_gets_a_task_without_passing_its_policies(
    tasks, multiple, native, has_plan, reported
):
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    plan = EligibilityTask(message.SerializeToString(), b"x", covers=["covered"])
    policy = Policy(*((name, [_KINDS[k] for k in kinds]) for name, (_, kinds) in tasks.items()))
    device = check_in(multiple=multiple, native=native)
    offer = offer_to(
        device,
        [OfferedTask(name, mode) for name, (mode, _) in tasks.items()],
        policy,
        plan if has_plan else None,
    )
    session = DeviceSession(
        "s", device, offer.names, offer.unconditional, plan_alone=offer.plan_alone
    )
    asked = {name for name, (_, kinds) in tasks.items() if kinds}
    assert set(session.weights(None)) == offer.names - asked == offer.unconditional
    weighed = {name for name, weight in session.weights(reported).items() if weight > 0}
    assert weighed <= offer.names
    assert weighed & asked <= {name for name, weight in reported.items() if weight > 0}
    for name in offer.names:
        mode, kinds = tasks[name]
        assert mode is SINGLE or (multiple and not offer.plan_alone)
        # What it cannot evaluate itself, a plan that it gets says.
        assert native or not kinds or (has_plan and offer.plan_alone and "native" not in kinds)
    if native:
        assert offer.names == {n for n, (mode, _) in tasks.items() if multiple or mode is SINGLE}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "it needs a plan or policies"),
        ({"checkpoint": b"x"}, "no plan to read it"),
    ],
)
def test_an_eligibility_task_has_something_in_it(fields, message):
    with pytest.raises(StatusError, match=message) as caught:
        EligibilityTask(**fields)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("plan_alone", [False, True])
def test_weights_count_for_tasks_that_were_offered(plan_alone):
    session = DeviceSession(
        "s",
        check_in(),
        frozenset({"a", "free"}),
        frozenset({"free"}),
        plan_alone=plan_alone,
    )
    assert session.weights(None) == {"free": 1.0}
    found = session.weights({"a": 0.5, "free": 0.0, "later": 1.0})
    # A plan that runs alone does not know of the tasks that it was not asked about.
    assert found == {"a": 0.5, "free": 1.0 if plan_alone else 0.0}
    anything = DeviceSession("s", check_in(), frozenset({"a"}))
    assert anything.weights({"later": 1.0}) == {"later": 1.0}


def test_a_spec_is_compressed_only_for_devices_that_can_undo_it():
    message = eligibility_pb2.PopulationEligibilitySpec()
    message.task_info.add(task_name="a")
    plain = spec_resource(message, ())
    assert plain.inline_resource.data == message.SerializeToString()
    assert plain.inline_resource.compression_format == 0
    packed = spec_resource(message, (1,))
    assert packed.inline_resource.compression_format == 1
    assert gzip.decompress(packed.inline_resource.data) == message.SerializeToString()


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_windows_go_over_the_wire_to_the_nanosecond(low, high):
    message = window_message(RetryWindow(low, high))
    for want, got in ((low, message.delay_min), (high, message.delay_max)):
        assert got.seconds + got.nanos / 1e9 == pytest.approx(want, abs=1e-9, rel=1e-12)
        assert 0 <= got.nanos < 10**9


def test_the_rate_of_check_ins_is_of_the_last_minute():
    rate = CheckInRate()
    for second in range(120):
        rate.count(second)
        rate.count(second + 0.5)
    assert rate.rate(119.9) == 2.0
    assert rate.rate(178.9) == pytest.approx(1 / 30)
    assert rate.rate(1000.0) == 0.0
