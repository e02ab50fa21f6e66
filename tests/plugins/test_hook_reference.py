"""Every hook is documented, on record, implemented by a plugin of ours, and really called.

Documentation, specification and use are kept in step: whoever adds a hook has to extend all three,
and says below how the plugin that uses it is brought to do so.
"""

import asyncio
import importlib
import inspect
import json
from pathlib import Path

import pytest

from fcp_core.plugins import reference
from fcp_core.plugins.discovery import hook_specs
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.events import TaskClosed
from fcp_core.rounds.pacing import Pace
from fcp_core.rounds.policies import CheckIn
from fcp_core.rounds.tasks import TaskSpec

ROOT = Path(__file__).parents[2]
HOOKS = sorted(hook_specs())
EVENT = TaskClosed(1.0, "p", "id", "task", 3, Code.OK)
TASK = TaskSpec("p", "t", plan=b"", aggregation=b"", goal_count=2, aggregators={"x": "krum"})


@pytest.fixture
def traced(tmp_path):
    """Load the built-in plugins and all example plugins; return them and their hook calls."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{'0' * 64} nobody\n")
    calls = []
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        overrides={
            "plugins": "fcp_admission.plugin:AdmissionPlugin, fcp_robust.plugin:RobustPlugin, "
            "fcp_lottery.plugin, fcp_privacy.plugin:PrivacyPlugin, "
            "fcp_dashboard.plugin:DashboardPlugin, "
            "fcp_webhook.plugin:WebhookPlugin, fcp_plugins.api_keys:APIKeys",
            "api_keys.file": str(keys),
            "admission.minimum_version": "2",
            "pacing.adaptive.enabled": "yes",
        },
        trace=calls.append,
    )
    return plugins, calls


def authenticate(plugins):
    with pytest.raises(StatusError):
        plugins.authenticate("POST", "/v1/x", {"x-goog-api-key": "wrong"}, "127.0.0.1")


def pace(plugins):
    load = {"pace": Pace(), "needs": 5, "population_size": 3}
    plugins.retry_window("p", True, load, 1.0)


#: How to make a server call a hook; the registrations run when plugins are loaded.
CALLS = {
    "fcp_authenticate": authenticate,
    "fcp_retry_window": pace,
    "fcp_admit_checkin": lambda plugins: plugins.admit(CheckIn("p", "1", "", False, False), 1.0),
    "fcp_check_task": lambda plugins: plugins.check_task(TASK),
    "fcp_event": lambda plugins: plugins.notify(EVENT),
    "fcp_startup": lambda plugins: None,
    "fcp_shutdown": lambda plugins: None,
}


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_in_the_reference_is_called(traced, hook):
    plugins, calls = traced
    asyncio.run(plugins.startup())
    CALLS.get(hook, lambda plugins: None)(plugins)
    asyncio.run(plugins.shutdown())
    (example,) = [entry.example for entry in reference.read_all() if entry.name == hook]
    owners = {
        item.source.name
        for item in plugins.plugins
        if inspect.getmodule(item.plugin if inspect.ismodule(item.plugin) else type(item.plugin))
        is importlib.import_module(example)
    }
    told = [call for call in calls if call.hook == hook and call.plugin in owners]
    assert told, f"no plugin of {example} was called; {owners} are the plugins of that module"
    arguments = set(inspect.signature(hook_specs()[hook]).parameters)
    assert all(set(call.arguments) <= arguments for call in told)


def test_every_other_hook_is_a_registration():
    kinds = {entry.name: entry.kind for entry in reference.read_all()}
    assert {name for name, kind in kinds.items() if kind != "Registration"} == set(CALLS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_specification_says_everything(hook):
    (entry,) = [entry for entry in reference.read_all() if entry.name == hook]
    specification = hook_specs()[hook]
    assert list(entry.arguments) == list(inspect.signature(specification).parameters)
    assert all(entry.arguments.values())
    assert entry.text[0].endswith(".")
    assert "\n" not in entry.text[0]
    assert len(entry.text) > 1, "when and how often it is called is a paragraph of its own"
    if inspect.signature(specification).return_annotation != "None":
        assert entry.returns
    assert entry.raises
    recorded = json.loads((ROOT / "tests" / "data" / "hooks.json").read_text(encoding="utf-8"))
    assert recorded[hook] == list(entry.arguments)


def test_the_pages_are_made_from_what_is_specified_and_declared(tmp_path):
    for name in ("hooks.md", "configuration.md"):
        (tmp_path / name).write_bytes((ROOT / "docs" / name).read_bytes())
    reference.write(tmp_path)
    for name in ("hooks.md", "configuration.md"):
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == (tmp_path / name).read_text(encoding="utf-8"), (
            "run: python -m fcp_core.plugins.reference docs"
        )
