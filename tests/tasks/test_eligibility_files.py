"""The file that describes an eligibility task, and the policies in a task file."""

import pytest

from fcp_core.errors import UsageError
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_core.tasks.eligibilityfile import read_eligibility_file
from fcp_core.tasks.taskfile import parse_task

TEXT = """
[eligibility]
population = "phones/all"
plan = "files/plan.pb"
checkpoint = "files/least"
name = "mine"
arguments = "17"
task_names = ["train"]
covers = ["data_availability"]

[[policy]]
policy = "sampling_without_replacement"
min_period = "2h"
group_regex = "train/.*"

[[policy]]
policy = "data_availability"
task_names = ["train", "test"]
collection_uri = "app:/taps"
min_example_count = 5
"""


@pytest.fixture
def folder(tmp_path):
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "plan.pb").write_bytes(message.SerializeToString())
    (tmp_path / "files" / "least").write_bytes(b"5")
    return tmp_path


def read(folder, text):
    (folder / "eligibility.toml").write_text(text)
    return read_eligibility_file(folder / "eligibility.toml")


def test_a_file_is_an_eligibility_task(folder):
    population, task = read(folder, TEXT)
    assert population == "phones/all"
    assert task == EligibilityTask(
        (folder / "files" / "plan.pb").read_bytes(),
        b"5",
        name="mine",
        arguments=b"17",
        task_names=["train"],
        policies=[
            PolicyChoice(
                "sampling_without_replacement", {"min_period": "2h", "group_regex": "train/.*"}
            ),
            PolicyChoice(
                "data_availability",
                {"collection_uri": "app:/taps", "min_example_count": 5},
                ["train", "test"],
            ),
        ],
        covers=["data_availability"],
    )


def test_policies_are_enough(folder):
    text = '[eligibility]\npopulation = "p"\n[[policy]]\npolicy = "minimum_separation"\n'
    _, task = read(folder, text)
    assert (task.plan, task.task_names) == (b"", None)
    assert task.policies == (PolicyChoice("minimum_separation"),)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("plan.pb", "plam.pb", r"toml, line 4: eligibility.plan: the file cannot be read"),
        ('name = "mine"', 'nam = "mine"', r"line 6: eligibility.nam: .*did you mean 'name'"),
        ("[eligibility]", "[elegibility]", r"eligibility: it is missing"),
        ('"files/plan.pb"', "3", r"line 4: eligibility.plan: it must be a string"),
        ('"files/plan.pb"', '"files/least"', r"not a ClientOnlyPlan|router must be"),
        ('policy = "data', 'polcy = "data', r"policy.1.policy: it is missing"),
        ('["train", "test"]', '"train"', r"line 18: policy.1.task_names: it must be an array"),
        ('population = "phones/all"', "", r"eligibility.population: it is missing"),
        ("[[policy]]", "[policy", r"toml: "),
        ('checkpoint = "files/least"', "", r"checkpoint must not be empty"),
    ],
)
def test_a_mistake_is_told_with_its_line(folder, old, new, problem):
    assert TEXT.count(old) >= 1
    with pytest.raises(UsageError, match=problem):
        read(folder, TEXT.replace(old, new, 1))


def test_a_file_that_is_not_there(folder):
    with pytest.raises(UsageError, match=r"the eligibility file .*none.toml cannot be read"):
        read_eligibility_file(folder / "none.toml")


TASK = """
[task]
population = "phones/all"
name = "launches"
goal_count = 2
[[query]]
collection_uri = "app:/launches"
[query.vectors]
launches = "int64"
[result]
sum = ["launches"]
[[eligibility]]
policy = "data_availability"
collection_uri = "app:/launches"
min_example_count = 5
[[eligibility]]
policy = "minimum_separation"
"""


def test_a_task_file_names_policies():
    spec = parse_task(TASK).to_spec()
    assert spec.eligibility == ("data_availability", "minimum_separation")
    assert spec.options == {
        "data_availability": {"collection_uri": "app:/launches", "min_example_count": 5}
    }
    with pytest.raises(UsageError, match=r"eligibility\.1\.policy: it is missing"):
        parse_task(TASK.replace('policy = "minimum_separation"', ""))
