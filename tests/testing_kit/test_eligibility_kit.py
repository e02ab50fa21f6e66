"""The eligibility kit passes a correct policy and catches one that is broken on purpose, by law."""

from __future__ import annotations

import random
import socket
import time
from typing import ClassVar

import pytest
from hypothesis import strategies as st

from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.rounds.policies import (
    EligibilityPolicy,
    EligibilityPolicyFactory,
    Refusal,
    RetryWindow,
)
from fcp_core.testing import EligibilityPolicyConformance
from fcp_core.testing.eligibility import check_ins


class Good(EligibilityPolicy):
    """Wants versions of one digit, and a number of examples for tasks that say so."""

    def __init__(self, options=None):
        pass

    def policies(self, population, task, now):
        count = task.options.get("good", {}).get("count")
        return () if count is None else (self.spec(count),)

    def spec(self, count):
        spec = eligibility_pb2.EligibilityPolicyEvalSpec(name="good", min_version=1)
        spec.data_availability_policy.min_example_count = count
        return spec

    def admit(self, check_in, now):
        if check_in.client_version in tuple("0123456789"):
            return None
        return Refusal("not a version", RetryWindow(1.0, 2.0))


def kit(cls, max_examples=100, **changes):
    fields = {"name": "good", "summary": "digits", "make": cls}

    class Laws(EligibilityPolicyConformance):
        factory = EligibilityPolicyFactory(**(fields | changes))
        task_options: ClassVar = {"count": 3}
        shrink = False
        derandomize = True

        def admitted(self):
            return check_ins(client_version=st.sampled_from("0123456789"))

        def refused(self):
            return check_ins(client_version=st.integers(10, 99).map(str))

    Laws.max_examples = max_examples
    return Laws


class TestGood(kit(Good, max_examples=5)):
    """The laws hold for a correct one, or what follows would prove nothing."""


class NoName(Good):
    def spec(self, count):
        spec = super().spec(count)
        spec.name = ""
        return spec


class NoPolicy(Good):
    def spec(self, count):
        return eligibility_pb2.EligibilityPolicyEvalSpec(name="good")


class AsksEverTheSame(Good):
    """Its messages differ although nothing does."""

    def __init__(self, options=None):
        self.asked = random.Random()

    def policies(self, population, task, now):
        specs = super().policies(population, task, now)
        return (*specs, self.spec(self.asked.randrange(1 << 20))) if specs else ()

    def admit(self, check_in, now):
        return None


class LosesTheSecond(Good):
    """Answers a generator, which can be gone over once, and another number the next time."""

    count = 0

    def policies(self, population, task, now):
        LosesTheSecond.count += 1
        return [self.spec(n) for n in range(LosesTheSecond.count % 2)]


class NoReason(Good):
    def admit(self, check_in, now):
        return super().admit(check_in, now) and Refusal("")


class Backwards(Good):
    def admit(self, check_in, now):
        return super().admit(check_in, now) and Refusal("no", RetryWindow(2.0, 1.0))


class Stumbles(Good):
    def admit(self, check_in, now):
        return None if int(check_in.client_version) < 10 else Refusal("no")


class Strict(Good):
    def admit(self, check_in, now):
        return Refusal("never")


class Lax(Good):
    def admit(self, check_in, now):
        return None


class Counts(Good):
    def __init__(self, options=None):
        self.asked = 0

    def admit(self, check_in, now):
        self.asked += 1
        return Refusal("enough") if self.asked > 1 else None


class PopsOptions(Good):
    def policies(self, population, task, now):
        count = task.options.get("good", {}).pop("count", None)
        return () if count is None else (self.spec(count),)


class Connects(Good):
    def admit(self, check_in, now):
        socket.gethostbyname("localhost")
        return super().admit(check_in, now)


class OwnTime(Good):
    def policies(self, population, task, now):
        return super().policies(population, task, time.time())


class Dice(Good):
    def admit(self, check_in, now):
        random.random()
        return super().admit(check_in, now)


BROKEN = [
    ("test_the_factory_describes_itself", Good, {"summary": "two\nlines"}),
    ("test_a_device_is_told_what_to_evaluate", NoName, {}),
    ("test_a_device_is_told_what_to_evaluate", NoPolicy, {}),
    ("test_the_offer_to_a_device_holds_the_policies", LosesTheSecond, {}),
    ("test_admission_is_yes_or_a_reason", NoReason, {}),
    ("test_admission_is_yes_or_a_reason", Backwards, {}),
    ("test_admission_is_yes_or_a_reason", Stumbles, {}),
    ("test_whom_it_admits", Strict, {}),
    ("test_whom_it_refuses", Lax, {}),
    ("test_nothing_is_kept_on_the_policy", Counts, {}),
    ("test_nothing_is_kept_on_the_policy", AsksEverTheSame, {}),
    ("test_what_it_is_shown_stays_as_it_was", PopsOptions, {}),
    ("test_it_does_no_input_or_output", Connects, {}),
    ("test_it_reads_no_clock", OwnTime, {}),
    ("test_it_uses_no_global_randomness", Dice, {}),
]


def name_of(value):
    """Name a parameter alike in every process: without the address of an object."""
    return ",".join(value) if isinstance(value, dict) else getattr(value, "__name__", value)


@pytest.mark.parametrize(("law", "cls", "changes"), BROKEN, ids=name_of)
def test_the_eligibility_kit_catches(law, cls, changes):
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(kit(cls, **changes)(), law)()


def test_every_eligibility_law_has_a_broken_policy():
    laws = {name for name in dir(EligibilityPolicyConformance) if name.startswith("test_")}
    assert {law for law, _, _ in BROKEN} == laws
