"""Every built-in policy obeys the laws."""

from typing import ClassVar

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
