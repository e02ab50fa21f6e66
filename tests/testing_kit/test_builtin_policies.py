"""Every built-in policy obeys the laws."""

from dataclasses import replace
from typing import ClassVar

from fcp_core.rounds.policies import BoundPolicy
from fcp_core.testing import EligibilityPolicyConformance, SelectionPolicyConformance
from fcp_plugins import eligibility, selection

SELECTION = {factory.name: factory for factory in selection.factories()}
ELIGIBILITY = {factory.name: factory for factory in eligibility.factories()}


class TestFifo(SelectionPolicyConformance):
    factory = SELECTION["fifo"]
    ordered = True


class TestUniform(SelectionPolicyConformance):
    factory = SELECTION["uniform"]
    options: ClassVar = {"window": 5.0, "min_candidates": None}
    fair = True


class TestUniformWithEnough(SelectionPolicyConformance):
    factory = SELECTION["uniform"]
    options: ClassVar = {"window": 5.0, "min_candidates": 2}
    fair = True


class TestCohort(SelectionPolicyConformance):
    factory = SELECTION["cohort"]
    options: ClassVar = {"window": 60.0}
    fair = True


class TestFairShare(SelectionPolicyConformance):
    factory = SELECTION["fair_share"]
    options: ClassVar = {"window": 5.0, "min_candidates": None, "shares": ("train=3",)}
    fair = True


class TestWeighted(SelectionPolicyConformance):
    factory = SELECTION["weighted"]
    options: ClassVar = {"window": 5.0, "min_candidates": None, "max_weight": 100.0}
    fair = True


def wrapped(name, inner, options):
    """Return a wrapper's factory as the kit takes one: with a policy to wrap."""
    bound = BoundPolicy(SELECTION[inner].make(options), options)
    factory = SELECTION[name]
    return replace(factory, make=lambda own: factory.make(own, bound), wraps=None)


class TestRateCapped(SelectionPolicyConformance):
    factory = wrapped("rate_capped", "uniform", {"window": 5.0, "min_candidates": None})
    options: ClassVar = {"period": 600.0, "limit": 8, "task_limit": 5, "wait": 300.0}
    fair = True


class TestRateCappedFairShare(SelectionPolicyConformance):
    factory = wrapped(
        "rate_capped", "fair_share", {"window": 5.0, "min_candidates": None, "shares": ()}
    )
    options: ClassVar = {"period": 600.0, "limit": 3, "task_limit": None, "wait": 0.0}


class TestTimeWindows(SelectionPolicyConformance):
    factory = wrapped("time_windows", "uniform", {"window": 5.0, "min_candidates": None})
    options: ClassVar = {
        "windows": ("13:00-14:00", "22:00-06:00"),
        "utc_offset": "-03:00",
        "days": (),
        "wait": 86400.0,
    }
    patience = 3 * 86400.0
    fair = True


class TestSamplingWithoutReplacement(EligibilityPolicyConformance):
    factory = ELIGIBILITY["sampling_without_replacement"]
    options: ClassVar = {"min_period": 3600.0, "group_regex": "train/.*", "min_version": 1}
    task_options: ClassVar = {"min_period": "2h"}


class TestMinimumSeparation(EligibilityPolicyConformance):
    factory = ELIGIBILITY["minimum_separation"]
    options: ClassVar = {
        "minimum_separation": 1,
        "current_index": None,
        "index_period": 3600.0,
        "min_trustworthiness_period": 60.0,
        "min_version": 2,
    }
    task_options: ClassVar = {"current_index": 7}


class TestDataAvailability(EligibilityPolicyConformance):
    factory = ELIGIBILITY["data_availability"]
    options: ClassVar = {
        "collection_uri": "",
        "min_example_count": 1,
        "use_example_query_result_format": True,
        "min_version": 1,
    }
    task_options: ClassVar = {"collection_uri": "app:/taps", "min_example_count": 3}
