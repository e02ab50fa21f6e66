"""What the command line loads to say what it can do: not what does the work."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("*/*/setup.cfg"))
#: None of them is needed to list commands.
HEAVY = {
    *("asyncpg", "cryptography", "distributed", "matplotlib", "opentelemetry", "sqlite3", "ssl"),
    *("tensorflow", "tensorflow_federated", "tornado", "urllib3"),
    *("fcp_core.client", "fcp_core.plugins.manager", "fcp_core.server", "fcp_core.storage.codec"),
}

SCRIPT = """
import json, sys
from click.testing import CliRunner
from fcp_core.commands.main import cli
shown = CliRunner().invoke(cli, sys.argv[1:], prog_name="fcp")
print(json.dumps([shown.exit_code, shown.output, sorted(sys.modules)]))
"""


@pytest.fixture
def installed(tmp_path):
    """The path on which all our distributions are found as if they were installed."""
    paths = []
    for folder in FOLDERS:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(folder / "setup.cfg", encoding="utf-8")
        name, version = parser["metadata"]["name"], parser["metadata"]["version"]
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = parser.get("options.entry_points", "fcp", fallback="")
        (info / "entry_points.txt").write_text(f"[fcp]{points}\n")
        paths.append(str(folder / "src"))
    return os.pathsep.join([str(tmp_path), *paths])


def fcp(path, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_help_loads_nothing_heavy_with_all_plugins_there_are(installed):
    status, shown, modules = fcp(installed, "--help")
    assert status == 0
    assert "  serve " in shown
    assert "  demo " in shown
    assert {"fcp_secagg.plugin", "fcp_postgres.plugin", "fcp_webhook.plugin"} <= set(modules)
    assert HEAVY & set(modules) == set()


def test_without_further_plugins_not_even_numpy_is_loaded():
    status, shown, modules = fcp("", "--help")
    assert status == 0
    assert "  demo " in shown
    assert "fcp_plugins.plugin" in modules
    assert (HEAVY | {"numpy", "google.protobuf", "msgspec", "rich"}) & set(modules) == set()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "tasks", "plugins", "client", "demo", "bench"])
def test_the_help_of_a_command_loads_nothing_heavy(installed, command):
    status, shown, modules = fcp(installed, command, "--help")
    assert status == 0
    assert shown.startswith(f"Usage: fcp {command} ")
    assert HEAVY & set(modules) == set()
