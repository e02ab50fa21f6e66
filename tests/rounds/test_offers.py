"""What devices are offered, and to which tasks their answers entitle them."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, make_offer, spec_resource
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.policies import CheckIn, EligibilityPolicy, OfferedTask
from fcp_core.rounds.session import DeviceSession
from fcp_core.rounds.tasks import AssignmentMode


def check_in(multiple=True, native=True):
    return CheckIn("p", "1", "", multiple, native)


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


@settings(deadline=None)
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
        "s",
        b"k",
        device,
        expires=1.0,
        offered=offer.names,
        unconditional=offer.unconditional,
        plan_alone=offer.plan_alone,
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


def test_a_spec_is_compressed_only_for_devices_that_can_undo_it():
    message = eligibility_pb2.PopulationEligibilitySpec()
    message.task_info.add(task_name="a")
    plain = spec_resource(message, ())
    assert plain.inline_resource.data == message.SerializeToString()
    assert plain.inline_resource.compression_format == 0
    packed = spec_resource(message, (1,))
    assert packed.inline_resource.compression_format == 1
    assert gzip.decompress(packed.inline_resource.data) == message.SerializeToString()
