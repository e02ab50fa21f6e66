"""The page about eligibility names every policy, and what it shows does what it says."""

import re
import textwrap
from pathlib import Path

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.tasks.eligibilityfile import read_eligibility_file

PAGE = (Path(__file__).parents[2] / "docs" / "eligibility.md").read_text(encoding="utf-8")


def load(folder):
    return Plugins.load(environ={}, working_folder=folder)


def test_every_built_in_policy_is_on_the_page(tmp_path):
    plugins = load(tmp_path)
    rows = re.findall(r"^\| `(\w+)` \| the (device|server) \| (.*) \|$", PAGE, re.M)
    assert {name for name, _, _ in rows} == set(plugins.eligibility_policies)
    for name, _, text in rows:
        options = set(plugins.config.section(f"eligibility.{name}"))
        assert set(re.findall(r"`(\w+)`", text)) <= options


def test_the_configuration_says_what_the_page_says(tmp_path):
    (block,) = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.M | re.S)
    (tmp_path / "setup.cfg").write_text(block)
    plugins = load(tmp_path)
    common = plugins.for_population("keyboards/all").make_eligibility_policies()
    assert [type(p).__name__ for p in common] == ["ClientVersion", "SamplingWithoutReplacement"]
    task = TaskSpec("keyboards/all", "taps", plan=b"", aggregation=b"", goal_count=1)
    own = plugins.for_task(task).own_eligibility_policies()
    assert [type(p).__name__ for p in own] == ["ClientVersion", "DataAvailability"]


@pytest.mark.slow
@pytest.mark.tff
def test_the_plan_and_the_file_fit_together(tmp_path):
    pytest.importorskip("tensorflow_federated")
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    names = {}
    exec(compile(block, "eligibility.md", "exec"), names)
    task = names["task"]
    (tmp_path / "plan.pb").write_bytes(task.plan)
    (tmp_path / "parameters.ckpt").write_bytes(task.checkpoint)
    (text,) = re.findall(r"^    \[eligibility\]\n(?:^(?:    .*)?\n)*", PAGE, re.M)
    (tmp_path / "eligibility.toml").write_text(textwrap.dedent(text))
    population, read = read_eligibility_file(tmp_path / "eligibility.toml")
    assert population == "keyboards/all"
    assert (read.plan, read.checkpoint, read.task_names) == (
        task.plan,
        task.checkpoint,
        task.task_names,
    )
    assert read.policies[0].options == {"minimum_separation": 24}
