"""Typed settings: what the server, a population and a task go by."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.settings import (
    PopulationSettings,
    ServerSettings,
    TaskSettings,
    retention_of,
)
from fcp_core.rounds.policies import RetryWindow
from fcp_core.rounds.specification import TaskSpec

KINDS = (ServerSettings, PopulationSettings, TaskSettings)


@pytest.fixture
def load(tmp_path):
    def make(text="", **overrides):
        (tmp_path / "fcp.cfg").write_text("[fcp]\n" + text)
        return Plugins.load(environ={}, working_folder=tmp_path, overrides=overrides).config

    return make


def spec(**fields):
    return TaskSpec("phones/all", "train", plan=b"", aggregation=b"", goal_count=1, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_documented(kind):
    text = inspect.getdoc(kind)
    assert [f.name for f in dataclasses.fields(kind) if f":param {f.name}:" not in text] == []


def test_the_server_s(load, tmp_path):
    found = ServerSettings.from_config(load())
    assert (found.session_timeout, found.storage, found.download_prefix) == (900.0, "memory", "")
    assert (found.metrics, found.metrics_address, found.client_ca) == (False, None, None)
    found = ServerSettings.from_config(
        load(
            "max_in_flight = 3GiB\nmax_sessions = 5\n"
            "download_prefix = https://cdn.example/fcp\nclient_ca = ca.pem\n"
            "client_certificates = optional\nmetrics = yes\nmetrics_address = [::1]:9100\n"
            "log_format = json\nlate_contributions = refuse\n"
        )
    )
    assert dataclasses.asdict(found) == {
        "session_timeout": 900.0,
        "max_in_flight": 3 << 30,
        "max_sessions": 5,
        "accepts_late": False,
        "download_prefix": "https://cdn.example/fcp/",
        "storage": "memory",
        "lease_seconds": 6.0,
        "client_ca": tmp_path / "ca.pem",
        "certificate_required": False,
        "metrics": True,
        "metrics_address": ("::1", 9100),
        "log_format": "json",
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("download_prefix = cdn.example", "download_prefix 'cdn.example' must be like"),
        ("metrics_address = 9100", r"metrics_address '9100' \(from fcp.cfg .*must be like"),
        ("metrics_address = here:99999", "must be like localhost:9100"),
    ],
)
def test_an_address_that_is_none_is_refused(load, line, problem):
    with pytest.raises(UsageError, match=problem):
        ServerSettings.from_config(load(line))


def test_a_population_s(load):
    config = load(
        "retry_min = 1s\nsession_timeout = 5m\n[fcp:population:phones/all]\nretry_max = 1m\n"
        "check_in_hold = 2s\npolling_interval = 3s\nsession_timeout = 6m\n"
        "max_at_work = 7\nmax_silent_per_sender = 9\ninline_resources_below = 8B\n"
    )
    assert PopulationSettings.of(config, "phones/all") == PopulationSettings(
        RetryWindow(1.0, 60.0), 2.0, 3.0, 360.0, 7, 9, 8
    )
    assert PopulationSettings.of(config, "others") == PopulationSettings(
        RetryWindow(1.0, 30.0), 0.0, 0.5, 300.0, None, 10, 0
    )


def test_a_task_s(load):
    config = load(
        "task_deadline = 10m\n[fcp:population:phones/all]\nover_selection = 1.5\n"
        "[fcp:task:train]\nassignment_timeout = 5s\ntask_retention = 1d\n"
        "resources_from = storage\ninline_resources_below = 8B\nmax_kept_bytes = 2KiB\n"
        "alike_failures = 0\ndurability = round\n"
    )
    configured = TaskSettings(
        600.0,
        5.0,
        0,
        1.5,
        2048,
        8,
        accepts_late=True,
        durability="round",
        from_storage=True,
    )
    assert TaskSettings.of(config, spec()) == configured
    assert retention_of(config, spec().population, spec().name) == 86400.0
    own = spec(deadline=1.0, over_selection=2.0, late_contributions="refuse")
    assert TaskSettings.of(config, own) == dataclasses.replace(
        configured, deadline=1.0, over_selection=2.0, accepts_late=False
    )
    other = TaskSettings.of(config, own.replace(population="others", name="n", over_selection=None))
    assert (other.over_selection, other.from_storage) == (None, False)
    assert (other.assignment_timeout, other.durability) == (600, "contribution")
    assert TaskSettings.of(config, spec(durability="contribution")).durability == "contribution"


@pytest.mark.parametrize(
    ("resources", "expected"), [(None, 8), ("uri", 0), ("inline", (64 << 10) + 1)]
)
def test_where_a_task_s_plan_lies(load, resources, expected):
    config = load("inline_resources_below = 8B\n")
    assert TaskSettings.of(config, spec(resources=resources)).inline_below == expected
