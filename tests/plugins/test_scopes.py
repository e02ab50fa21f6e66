"""Sections of the configuration for one population or for the tasks of one name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcp_core.errors import UsageError
from fcp_core.rounds.policies import CheckIn, OfferedTask, RetryWindow
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec

TWO = """
[fcp]
selection = fifo
task_deadline = 10m
aggregator = unweighted_mean

[fcp:population:phones/all]
selection = uniform
selection.uniform.window = 7s
retry-min = 1s
retry_max = 2s
aggregator = median
eligibility = data_availability

[fcp:task:nightly]
selection.uniform.window = 9s
task_deadline = 8h
aggregator =
"""


@pytest.fixture
def configured(load, tmp_path):
    def configured(text, **arguments):
        (tmp_path / "setup.cfg").write_text(text)
        return load(**arguments)

    return configured


def spec(population="phones/all", name="daily", **more):
    return TaskSpec(population, name, plan=b"", aggregation=b"", goal_count=1, **more)


def test_a_population_has_its_own_choices(configured):
    plugins = configured(TWO)
    phones, others = plugins.for_population("phones/all"), plugins.for_population("tablets")
    assert (phones.selection, others.selection) == ("uniform", "fifo")
    assert set(phones.aggregator_choices().values()) == {"median"}
    assert set(others.aggregator_choices().values()) == {"unweighted_mean"}
    assert [type(p).__name__ for p in phones.make_eligibility_policies()] == ["DataAvailability"]
    assert others.make_eligibility_policies() == []
    assert plugins.retry_window("phones/all", True, {}, 1.0) == RetryWindow(1, 2)
    assert plugins.retry_window("tablets", True, {}, 1.0) == RetryWindow(10, 30)
    assert plugins.config.get("selection") == "fifo"


def test_a_task_wins_over_its_population_and_itself_over_both(configured):
    plugins = configured(TWO)
    daily, nightly = plugins.for_task(spec()), plugins.for_task(spec(name="nightly"))
    assert (daily.settings.deadline, nightly.settings.deadline) == (600, 8 * 3600)
    assert daily.selection_chain()[0][1]["window"] == 7
    assert nightly.selection_chain()[0][1]["window"] == 9
    assert nightly.selection == "uniform"
    assert nightly.aggregator_choices() == {}
    own = plugins.for_task(
        spec(
            name="nightly",
            deadline=5,
            over_selection=3.0,
            options={"uniform": {"window": "11s"}},
            aggregators={"federated_mean": "median"},
        )
    )
    assert (own.settings.deadline, own.settings.over_selection) == (5, 3.0)
    assert own.selection_chain()[0][1]["window"] == 11
    assert own.aggregator_choices() == {"federated_mean": "median"}
    assert plugins.for_task(spec(selection="fifo")).selection == "fifo"


def test_a_section_wins_over_what_holds_for_all_wherever_that_comes_from(configured):
    plugins = configured(
        "[fcp:population:p]\nselection = uniform\n",
        environ={"FCP_SELECTION": "fifo"},
        overrides={"population:q.selection": "fifo", "population:q.selection.uniform.window": 3},
    )
    assert plugins.for_population("p").selection == "uniform"
    assert plugins.config.scoped("q").section("selection.uniform")["window"] == 3
    assert plugins.config.scopes() == ["population:p", "population:q"]
    assert plugins.config.scopes("population") == ["p", "q"]
    assert plugins.config.scopes("task") == []
    shown = {value.label: (value.shown, value.origin) for value in plugins.config.options()}
    assert shown["[fcp:population:p] selection"] == (
        "uniform",
        "setup.cfg [fcp:population:p] selection",
    )
    assert shown["[fcp:population:q] selection.uniform.window"] == (
        "3s",
        "the program's overrides: population:q.selection.uniform.window",
    )


def test_the_program_wins_over_the_file_within_one_section(configured):
    plugins = configured(
        "[fcp:population:p]\nselection = uniform\nretry_min = 2s\n",
        overrides={"population:p.selection": "fifo"},
    )
    assert plugins.for_population("p").selection == "fifo"
    assert plugins.config.scoped("p").get("retry_min") == 2


def test_toml_has_such_sections_too(load, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.fcp."population:phones/all"]\nselection = "uniform"\n'
        '"selection.uniform.window" = "7s"\n'
    )
    choices = load().for_population("phones/all")
    assert (choices.selection, choices.selection_chain()[0][1]["window"]) == ("uniform", 7)


def test_an_operators_own_option_may_differ_by_population(configured):
    plugins = configured(
        "[fcp:population:p]\naggregator.fcp_secure_sum.allow_plaintext = yes\n".replace(
            "fcp_secure_sum.allow_plaintext", _operator_only()
        )
    )
    name, option = _operator_only().rpartition(".")[::2]
    assert plugins.for_task(spec("p")).aggregator_options()[name][option] is True
    assert plugins.for_task(spec("q")).aggregator_options()[name][option] is False


def _operator_only():
    from fcp_aggregators import secure_sum

    return f"{secure_sum.FACTORIES[0].name}.{secure_sum.OPTION}"


def test_a_task_has_eligibility_policies_of_its_own(configured):
    plugins = configured(
        "[fcp]\neligibility = client_version\n"
        "[fcp:task:nightly]\neligibility = data_availability\n"
        "eligibility.data_availability.collection_uri = app:/nights\n"
        "[fcp:task:anyone]\neligibility =\n"
    )

    def own(**more):
        policies = plugins.for_task(spec(**more)).own_eligibility_policies()
        return policies and [type(policy).__name__ for policy in policies]

    assert own() is None
    assert own(name="nightly") == ["DataAvailability"]
    assert own(name="anyone") == []
    # What it names itself comes on top: the operator's word stands.
    more = ["sampling_without_replacement", "client_version"]
    assert own(eligibility=more) == [
        "ClientVersion",
        "SamplingWithoutReplacement",
        "ClientVersion",
    ]
    (policy,) = plugins.for_task(spec(name="nightly")).own_eligibility_policies()
    (asked,) = policy.policies("phones/all", OfferedTask("nightly", AssignmentMode.SINGLE), 0.0)
    assert asked.data_availability_policy.selector.collection_uri == "app:/nights"
    problems = plugins.check_task(spec(eligibility=["data_availabilty"]))
    assert any("Did you mean 'data_availability'?" in problem for problem in problems)
    broken = {"sampling_without_replacement": {"group_regex": "("}}
    (problem,) = plugins.check_task(spec(options=broken))
    assert "regular expression" in problem


def test_a_task_cannot_weaken_the_operators_verdict(configured):
    plugins = configured(
        "[fcp]\neligibility = client_version\n[fcp:eligibility.client_version]\nminimum = 2\n"
    )
    task = spec(eligibility=["client_version"], options={"client_version": {"minimum": "1"}})
    policies = plugins.for_task(task).own_eligibility_policies()
    old = CheckIn("phones/all", "1.5", "", True, True)
    assert [policy.admit(old, 0.0) is None for policy in policies] == [False, True]


MISTAKES = {
    "unknown": (
        "[fcp:population:p]\nselecton = fifo",
        r"setup.cfg \[fcp:population:p\] selecton: there is no such option. Did you mean selection",
    ),
    "not for a population": (
        "[fcp:population:p]\nstorage = sqlite",
        r"\] storage: a population cannot override it. A population can override aggregator, .*"
        r"retry_max.*, and options such as \S+\.\S+\.",
    ),
    "not for a task": ("[fcp:task:t]\nretry_min = 1s", r"retry_min: a task cannot override it"),
    "a thing's option": (
        "[fcp:task:t]\nstorage.sqlite.path = x",
        r"storage.sqlite.path: a task cannot override it",
    ),
    "wrong type": (
        "[fcp:task:t]\ntask_deadline = soon",
        r"task_deadline: 'soon' is not a duration",
    ),
    "not installed": (
        "[fcp:population:p]\nselection = fife",
        r"\[fcp:population:p\] selection: no active plugin .* 'fife'. Did you mean 'fifo'",
    ),
    "a policy that cannot be made": (
        "[fcp:task:t]\neligibility = sampling_without_replacement\n"
        "eligibility.sampling_without_replacement.group_regex = (",
        r"group_regex: '\(' is no regular expression",
    ),
    "two for one": (
        "[fcp:population:p]\naggregator = median, unweighted_mean",
        r"\[fcp:population:p\] aggregator: median and unweighted_mean both serve federated_mean",
    ),
    "a bad name": (
        "[fcp:population:my-phones]\nselection = fifo",
        r"'my-phones' is no name of a population; it must match",
    ),
    "contradiction": (
        "[fcp:population:p]\nretry_min = 1h",
        r"retry_min \(3600s, from setup.cfg \[fcp:population:p\] retry_min\) is above retry_max",
    ),
    "twice": (
        "[fcp:population:p]\nretry_min = 1s\nretry-min = 2s",
        r"setup.cfg \[fcp:population:p\] retry.min: the key is there twice",
    ),
    "unknown kind": (
        "[fcp:popluation:p]\nselection = fifo",
        r"\[fcp:popluation:p\]: no active plugin has such options",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place(configured, name):
    text, message = MISTAKES[name]
    with pytest.raises(UsageError) as caught:
        configured(f"{text}\n")
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_config_show_has_them(tmp_path):
    (tmp_path / "setup.cfg").write_text(TWO)
    script = Path(sys.executable).with_name("fcp")
    shown = subprocess.run(
        [script, "config", "show"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    cells = {line[0]: line[1:] for line in lines}
    assert cells["[fcp:population:phones/all] selection.uniform.window"][:2] == [
        "7s",
        "setup.cfg [fcp:population:phones/all] selection.uniform.window",
    ]
