"""Every built-in policy obeys the laws, with the options that the configuration gives it."""

from typing import ClassVar

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.testing import EligibilityPolicyConformance, SelectionPolicyConformance

PLUGINS = Plugins.load(environ={}, working_folder="/")
SELECTION, ELIGIBILITY = PLUGINS.selection_policies, PLUGINS.eligibility_policies


def options(section, **changes):
    return dict(PLUGINS.config.section(section, changes))


class SelectionLaws(SelectionPolicyConformance):
    max_examples = 8


class EligibilityLaws(EligibilityPolicyConformance):
    max_examples = 15


class TestFifo(SelectionLaws):
    factory = SELECTION["fifo"]
    options: ClassVar = options("selection.fifo")
    ordered = True


class TestUniform(SelectionLaws):
    factory = SELECTION["uniform"]
    options: ClassVar = options("selection.uniform")
    fair = True


@pytest.mark.slow
class TestUniformWithEnough(SelectionLaws):
    factory = SELECTION["uniform"]
    options: ClassVar = options("selection.uniform", min_candidates=2)
    fair = True


class TestCohort(SelectionLaws):
    factory = SELECTION["cohort"]
    options: ClassVar = options("selection.cohort")
    fair = True


class TestFairShare(SelectionLaws):
    factory = SELECTION["fair_share"]
    options: ClassVar = options("selection.fair_share", shares="train=2, *=1")


class TestWeighted(SelectionLaws):
    factory = SELECTION["weighted"]
    options: ClassVar = options("selection.weighted")
    fair = True


class TestRateCapped(SelectionLaws):
    factory = SELECTION["rate_capped"]
    options: ClassVar = options("selection.rate_capped", limit=5, period="10m")
    ordered = True


class TestTimeWindows(SelectionLaws):
    factory = SELECTION["time_windows"]
    options: ClassVar = options("selection.time_windows", windows="02:00-04:00, 22:00-23:30")
    ordered = True


class TestSamplingWithoutReplacement(EligibilityLaws):
    factory = ELIGIBILITY["sampling_without_replacement"]
    options: ClassVar = options("eligibility.sampling_without_replacement")
    task_options: ClassVar = {"min_period": "2h"}


class TestMinimumSeparation(EligibilityLaws):
    factory = ELIGIBILITY["minimum_separation"]
    options: ClassVar = options("eligibility.minimum_separation")
    task_options: ClassVar = {"current_index": 7}


class TestDataAvailability(EligibilityLaws):
    factory = ELIGIBILITY["data_availability"]
    options: ClassVar = options(
        "eligibility.data_availability", use_example_query_result_format="yes"
    )
    task_options: ClassVar = {"collection_uri": "app:/taps", "min_example_count": 3}


class TestTensorFlowCustom(EligibilityLaws):
    factory = ELIGIBILITY["tensorflow_custom"]
    options: ClassVar = options("eligibility.tensorflow_custom")
    task_options: ClassVar = {"arguments": "17"}


class TestClientVersion(EligibilityLaws):
    factory = ELIGIBILITY["client_version"]
    options: ClassVar = options("eligibility.client_version", minimum="1.4")
    task_options: ClassVar = {"minimum": "1.5"}


class TestCapabilities(EligibilityLaws):
    factory = ELIGIBILITY["capabilities"]
    options: ClassVar = options("eligibility.capabilities", required="gzip")
    task_options: ClassVar = {"required": "willow"}


def test_no_built_in_policy_is_left_out():
    kits = [value for name, value in globals().items() if name.startswith("Test")]
    tried = {kit.factory.name for kit in kits}
    ours = {
        offer.name
        for offer in PLUGINS.offers()
        if offer.kind in ("selection", "eligibility") and offer.plugin.name == "builtin_policies"
    }
    assert tried == ours
