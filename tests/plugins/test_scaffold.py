"""``fcp plugin new``: what it writes works as it is."""

import ast
import configparser
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import settings as hypothesis_settings

from fcp_core.commands.invocation import Invocation
from fcp_core.commands.plugin import KINDS, plugin, write_plugin
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.testing import AggregatorConformance, StorageConformance
from fcp_core.testing.kit import Conformance

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ROUND = Path(__file__).with_name("plugin_round.py")

#: The options in setup.cfg with which a plugin called "mine" takes part.
OPTIONS = {
    "aggregator": "limit = 2.0",
    "selection": "max_wait = 5s",
    "eligibility": "oldest = 7",
    "storage": "path = records.log",
    "engine": "",
    "protocol": "max_size = 1KiB",
}


def configure(folder, kind):
    """Write a setup.cfg that chooses the plugin, as its README says."""
    section = f"[fcp:{kind}.mine]\n{OPTIONS[kind]}\n" if OPTIONS[kind] else ""
    (folder / "setup.cfg").write_text(f"[fcp]\n{kind} = mine\n\n{section}")


def check_round(outcome, kind):
    assert [kind, "mine"] in outcome["active"]
    assert outcome["outcomes"] == ["CONTRIBUTED"] * 3
    # The aggregator clips what the third device brings.
    assert outcome["total"] == ([2.75, 3.0] if kind == "aggregator" else [40.75, 3.0])


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_test_for_every_kind():
    assert set(OPTIONS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_new_plugin_serves_a_round(kind, tmp_path):
    write_plugin("mine", kind, tmp_path / "mine")
    module = load_file(f"mine_{kind}", tmp_path / "mine" / "src" / "fcp_mine" / "plugin.py")
    configure(tmp_path, kind)
    plugins = Plugins.load(environ={}, working_folder=tmp_path, extra=[module])
    check_round(load_file("plugin_round", ROUND).run_round(plugins), kind)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_new_plugin_passes_its_kit(kind, pytester, monkeypatch):
    # Few examples: the kits prove themselves elsewhere, this is about the plugin's files.
    monkeypatch.setattr(Conformance, "max_examples", 3)
    monkeypatch.setattr(AggregatorConformance, "max_examples", 3)
    few = hypothesis_settings(max_examples=2, stateful_step_count=5, deadline=None)
    monkeypatch.setattr(StorageConformance, "settings", few)
    write_plugin("mine", kind, pytester.path / "mine")
    monkeypatch.chdir(pytester.path / "mine")
    # A storage's test starts processes that import it.
    monkeypatch.setenv("PYTHONPATH", str(pytester.path / "mine" / "src"))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-q")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 10
    assert not outcomes.keys() & {"failed", "errors", "error"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_written_is_short(kind, tmp_path):
    for path in write_plugin("a-name-of-twenty-one", kind, tmp_path):
        lines = path.read_text().splitlines()
        assert all(len(line) <= 100 for line in lines if path.suffix == ".py"), path
        if path.name == "test_conformance.py":
            assert len([line for line in lines if line.strip()]) <= 20


def test_the_metadata_name_the_plugin(tmp_path):
    files = write_plugin("trimmed-mean", "aggregator", tmp_path)
    assert all(path.is_file() for path in files)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(tmp_path / "setup.cfg")
    assert parser["metadata"]["name"] == "fcp-server-trimmed-mean"
    assert parser["options"]["packages"].split() == ["fcp_trimmed_mean"]
    major, minor = map(int, importlib.metadata.version("fcp-server").split(".")[:2])
    bounds = f">={major}.{minor},<{major + 1 if major else f'0.{minor + 1}'}"
    assert parser["options"]["install_requires"].split() == [f"fcp-server{bounds}"]
    points = parser["options.entry_points"]["fcp"].strip()
    assert points == "trimmed_mean = fcp_trimmed_mean.plugin"
    assert (tmp_path / "src" / "fcp_trimmed_mean" / "py.typed").exists()
    readme = (tmp_path / "README.md").read_text()
    assert "aggregator = trimmed_mean" in readme
    assert "[fcp:aggregator.trimmed_mean]" in readme
    assert "$" not in readme


@pytest.mark.parametrize(
    ("name", "kind"),
    [("storage", "storage"), ("selection-policy", "selection"), ("exception", "engine")],
)
def test_a_class_is_called_like_nothing_else(name, kind, tmp_path):
    write_plugin(name, kind, tmp_path)
    (path,) = tmp_path.glob("src/*/plugin.py")
    tree = ast.parse(path.read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    names = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert classes
    assert not classes & names
    load_file(f"named_{kind}", path)


@pytest.mark.parametrize("name", ["", "Mine", "1st", "a b", "../x", "a--b", "plugins", "x" * 60])
def test_a_bad_name_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="cannot be called"):
        write_plugin(name, "storage", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="is there already"):
            write_plugin("mine", "storage", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UsageError, match="no kind 'color'"):
        write_plugin("mine", "color", tmp_path / "new")
    with pytest.raises(UsageError, match="cannot be written"):
        write_plugin("mine", "storage", tmp_path / "file" / "below")


def test_the_command_says_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(plugin, ["new", "mine", "--kind", "engine"], obj=Invocation())
    assert result.exit_code == 0, result.output
    assert "wrote mine/src/fcp_mine/plugin.py" in result.output
    assert "cd mine && pip install" in result.output
    again = CliRunner().invoke(plugin, ["new", "mine", "--kind", "engine"], obj=Invocation())
    assert isinstance(again.exception, UsageError)


def copy_checkout(target):
    """Copy what git knows of the checkout, so that building leaves nothing behind in it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    wanted = ("fcp_core", "platform", "plugins", "aggregators")
    for line in listed.stdout.splitlines():
        file = Path(line)
        if (len(file.parts) == 1 or file.parts[0] in wanted) and (ROOT / file).is_file():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes((ROOT / file).read_bytes())


def test_wheels_in_a_fresh_environment(tmp_path):
    """From ``fcp plugin new`` to a round: build, install with pip, test, choose in setup.cfg."""

    def run(*command, cwd=tmp_path):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FCP_", "PYTHON"))}
        result = subprocess.run(
            list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    checkout, author, wheels = tmp_path / "checkout", tmp_path / "author", tmp_path / "wheels"
    copy_checkout(checkout)
    run(sys.executable, "-m", "fcp_core", "plugin", "new", "mine", "--kind=aggregator")
    (tmp_path / "mine").rename(author)
    quiet = ("--disable-pip-version-check", "--quiet")
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w", wheels)
    run(sys.executable, "-m", "pip", *quiet, *build, checkout, author)
    (ours,) = wheels.glob("fcp_server-*.whl")
    (theirs,) = wheels.glob("fcp_server_mine-*.whl")

    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, *quiet)
    run(*pip, "install", "--no-compile", f"{ours}[testing]", theirs)
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=author)

    server = tmp_path / "server"
    server.mkdir()
    configure(server, "aggregator")
    where = run(python, "-c", "import fcp_core, fcp_mine; print(fcp_core.__file__)", cwd=server)
    assert where.startswith(str(tmp_path / "env"))
    check_round(json.loads(run(python, ROUND, cwd=server)), "aggregator")
