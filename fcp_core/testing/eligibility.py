"""The conformance kit of eligibility policies: subclass, name a factory, run with pytest.

An example, complete::

    class TestNewVersions(EligibilityPolicyConformance):
        factory = my_plugin.NEW_VERSIONS
        options = {"oldest": 7}

        def refused(self):
            return check_ins(client_version=st.integers(0, 6).map(str))
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.rounds.eligibility import make_offer
from fcp_core.rounds.policies import (
    CheckIn,
    EligibilityPolicy,
    EligibilityPolicyFactory,
    OfferedTask,
    Refusal,
)
from fcp_core.rounds.tasks import AssignmentMode
from fcp_core.testing.kit import Conformance, outside_calls, pytest
from fcp_core.testing.laws import applies_if

#: Names of populations and tasks.
names = st.sampled_from(["people", "phones/all", "a/b/c", "train", "x_1/é"])
#: Times, in seconds since the epoch.
times = st.floats(min_value=0, max_value=4e9)


def check_ins(**fixed: SearchStrategy[Any]) -> SearchStrategy[CheckIn]:
    """Draw what devices say when they check in.

    :param fixed: strategies for some of the fields of a :class:`CheckIn`.
    """
    fields: dict[str, SearchStrategy[Any]] = {
        "population": names,
        "client_version": st.text(max_size=6) | st.integers(0, 9999).map(str),
        "attestation_measurement": st.text(max_size=6),
        "supports_multiple_task_assignment": st.booleans(),
        "supports_native_eligibility": st.booleans(),
        "supported_compression": st.sampled_from([(), (1,)]),
        "principal": st.none() | st.text(max_size=6),
    }
    return st.builds(CheckIn, **{**fields, **fixed})


class EligibilityPolicyConformance(Conformance):
    """The laws of :class:`fcp_core.rounds.policies.EligibilityPolicy`, checked for one factory.

    Override :meth:`admitted` and :meth:`refused` to say whom the policy lets in.
    """

    factory: ClassVar[EligibilityPolicyFactory]
    #: Everything that the policy needs: defaults are the configuration's, not the kit's.
    options: ClassVar[Mapping[str, Any]] = {}
    #: Options that a task may bring for this policy, under its name.
    task_options: ClassVar[Mapping[str, Any]] = {}

    def admitted(self) -> SearchStrategy[CheckIn] | None:
        """Draw check-ins that the policy must admit."""
        return None

    def refused(self) -> SearchStrategy[CheckIn] | None:
        """Draw check-ins that the policy must refuse."""
        return None

    def tasks(self) -> SearchStrategy[OfferedTask]:
        """Draw tasks that the policy is asked about, with and without options of their own."""
        own = {self.factory.name: dict(self.task_options)}
        return st.builds(
            OfferedTask, names, st.sampled_from(AssignmentMode), st.sampled_from([{}, own])
        )

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, and makes eligibility policies."""
        assert self.factory.name
        assert self.factory.summary
        assert "\n" not in self.factory.summary
        assert isinstance(self.make(), EligibilityPolicy)

    def test_a_device_is_told_what_to_evaluate(self) -> None:
        """Each message has a name and a policy in it, and can be sent."""

        def law(population: str, task: OfferedTask, now: float) -> None:
            for spec in self.make().policies(population, task, now):
                assert isinstance(spec, eligibility_pb2.EligibilityPolicyEvalSpec)
                assert spec.name
                assert spec.WhichOneof("policy_type") is not None
                assert type(spec).FromString(spec.SerializeToString()) == spec

        self.check(law, names, self.tasks(), times)

    def test_the_offer_to_a_device_holds_the_policies(self) -> None:
        """All that is asked of a task reaches a device that can evaluate it, and only then."""

        def law(check_in: CheckIn, tasks: list[OfferedTask], now: float) -> None:
            offer = make_offer(check_in, [(task, [self.make()]) for task in tasks], now)
            shown = {task.name: task for task in tasks}
            for info in offer.spec.task_info if offer.spec is not None else ():
                task = shown[info.task_name]
                wanted = self.make().policies(check_in.population, task, now)
                distinct = {spec.SerializeToString(deterministic=True) for spec in wanted}
                assert len(info.eligibility_policy_indices) == len(distinct)
                assert check_in.supports_native_eligibility or not wanted

        tasks = st.lists(self.tasks(), max_size=4, unique_by=lambda task: task.name)
        self.check(law, check_ins(), tasks, times)

    def test_admission_is_yes_or_a_reason(self) -> None:
        """Any check-in is admitted, or refused with a reason and a sensible retry window."""

        def law(check_in: CheckIn, now: float) -> None:
            refusal = self.make().admit(check_in, now)
            if refusal is None:
                return
            assert isinstance(refusal, Refusal)
            assert refusal.reason
            if refusal.retry is not None:
                assert 0 <= refusal.retry.delay_min <= refusal.retry.delay_max < math.inf

        self.check(law, check_ins(), times)

    @applies_if(lambda kit: kit.admitted is not EligibilityPolicyConformance.admitted)
    def test_whom_it_admits(self) -> None:
        """Those that :meth:`admitted` draws are let in."""
        admitted = self.admitted()
        if admitted is None:
            pytest.skip("the kit was not told whom the policy admits")

        def law(check_in: CheckIn, now: float) -> None:
            assert self.make().admit(check_in, now) is None

        self.check(law, admitted, times)

    @applies_if(lambda kit: kit.refused is not EligibilityPolicyConformance.refused)
    def test_whom_it_refuses(self) -> None:
        """Those that :meth:`refused` draws are not let in."""
        refused = self.refused()
        if refused is None:
            pytest.skip("the kit was not told whom the policy refuses")

        def law(check_in: CheckIn, now: float) -> None:
            assert self.make().admit(check_in, now) is not None

        self.check(law, refused, times)

    def test_nothing_is_kept_on_the_policy(self) -> None:
        """What was asked before, about whomever, changes no answer."""

        def law(questions: list[tuple[CheckIn, OfferedTask, float]]) -> None:
            old = self.make()
            for check_in, task, now in questions:
                assert _ask(self.make(), check_in, task, now) == _ask(old, check_in, task, now)

        self.check(law, st.lists(st.tuples(check_ins(), self.tasks(), times), max_size=5))

    def test_what_it_is_shown_stays_as_it_was(self) -> None:
        """A task's options are not changed in place."""

        def law(population: str, task: OfferedTask, now: float) -> None:
            before = copy.deepcopy(task)
            self.make().policies(population, task, now)
            assert task == before

        self.check(law, names, self.tasks(), times)

    def test_it_does_no_input_or_output(self) -> None:
        """No files, sockets or processes, and nothing printed."""
        self._watched("io")

    def test_it_reads_no_clock(self) -> None:
        """The time is what it is told."""
        self._watched("clock")

    def test_it_uses_no_global_randomness(self) -> None:
        """It has no generator at all."""
        self._watched("randomness")

    def make(self) -> EligibilityPolicy:
        """Make a policy."""
        return self.factory.make(self.options)

    def _watched(self, kind: str) -> None:
        def law(check_in: CheckIn, task: OfferedTask, now: float) -> None:
            policy = self.make()
            # The first call may import what it needs.
            _ask(policy, check_in, task, now)
            with outside_calls() as outside:
                _ask(policy, check_in, task, now)
            assert getattr(outside, kind) == []

        self.check(law, check_ins(), self.tasks(), times)


def _ask(policy: EligibilityPolicy, check_in: CheckIn, task: OfferedTask, now: float) -> Any:
    specs = policy.policies(check_in.population, task, now)
    return [spec.SerializeToString(deterministic=True) for spec in specs], policy.admit(
        check_in, now
    )
