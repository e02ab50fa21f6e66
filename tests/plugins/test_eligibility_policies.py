"""What the built-in eligibility policies tell a device."""

import pytest

from fcp_core.errors import UsageError
from fcp_core.protocol.protos import population_eligibility_spec_pb2 as eligibility_pb2
from fcp_core.rounds.policies import OfferedTask
from fcp_core.rounds.tasks import AssignmentMode


def specs(load, name, now=7200.0, task_options=None, **options):
    overrides = {"eligibility": [name]}
    overrides |= {f"eligibility.{name}.{key}": value for key, value in options.items()}
    (policy,) = load(overrides=overrides).make_eligibility_policies()
    task = OfferedTask("t", AssignmentMode.SINGLE, {name: task_options or {}})
    return list(policy.policies("p", task, now))


def spec(**values):
    return eligibility_pb2.EligibilityPolicyEvalSpec(**values)


def test_sampling_without_replacement(load):
    (found,) = specs(
        load, "sampling_without_replacement", min_period="1h500ms", group_regex="train/.*"
    )
    assert found == spec(
        name="sampling_without_replacement",
        min_version=1,
        swor_policy={
            "min_period": {"seconds": 3600, "nanos": 500_000_000},
            "group_regex": "train/.*",
        },
    )


def test_a_broken_group_is_refused_at_once(load):
    with pytest.raises(UsageError, match=r"group_regex: '\(' is no regular expression"):
        specs(load, "sampling_without_replacement", group_regex="(")


def test_minimum_separation_counts_the_tasks_own_index(load):
    (found,) = specs(
        load,
        "minimum_separation",
        task_options={"current_index": 7},
        minimum_separation=3,
        min_trustworthiness_period="2d",
    )
    # Clients do not keep the versions before it.
    assert found == spec(
        name="minimum_separation",
        min_version=3,
        min_sep_policy={
            "current_index": 7,
            "minimum_separation": 3,
            "min_trustworthiness_period": {"seconds": 172800},
        },
    )


def test_an_operator_may_have_older_clients_take_part(load):
    (found,) = specs(load, "minimum_separation", min_version=1)
    assert found.min_version == 1


def test_minimum_separation_counts_periods_without_an_index(load):
    indices = [
        specs(load, "minimum_separation", now=now, index_period="1h")[
            0
        ].min_sep_policy.current_index
        for now in (7200.0, 10799.0, 10800.0)
    ]
    assert indices == [2, 2, 3]


def test_data_availability(load):
    (found,) = specs(load, "data_availability", collection_uri="app:/taps", min_example_count=20)
    assert found == spec(
        name="data_availability",
        min_version=1,
        data_availability_policy={
            "selector": {"collection_uri": "app:/taps"},
            "min_example_count": 20,
        },
    )


def test_counting_rows_needs_a_device_that_knows_how(load):
    (found,) = specs(
        load,
        "data_availability",
        collection_uri="app:/taps",
        use_example_query_result_format="yes",
    )
    assert found.min_version == 2
    assert found.data_availability_policy.use_example_query_result_format


def test_without_a_collection_nothing_is_asked(load):
    assert specs(load, "data_availability") == []
    (found,) = specs(load, "data_availability", task_options={"collection_uri": "app:/x"})
    assert found.data_availability_policy.selector.collection_uri == "app:/x"


def test_the_plan_is_told_the_tasks_own_arguments(load):
    (found,) = specs(load, "tensorflow_custom", arguments="all")
    assert found == spec(
        name="tensorflow_custom", min_version=1, tf_custom_policy={"arguments": b"all"}
    )
    (found,) = specs(load, "tensorflow_custom", task_options={"arguments": "näher"})
    assert found.tf_custom_policy.arguments == "näher".encode()


def test_options_out_of_range_are_refused(load):
    with pytest.raises(UsageError, match="min_example_count: 0 is not at least 1"):
        specs(load, "data_availability", min_example_count=0)
