"""The example plugins are distributions that a stranger could have written."""

import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from fcp_core.commands.invocation import refuse_uninstalled
from fcp_core.errors import UsageError
from fcp_core.plugins.discovery import check_plugin
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.offers import PluginSource

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for plain in ("aggregators", "plugins")
    for path in (ROOT / plain).glob("*/setup.cfg")
)


def metadata(folder):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / folder / "setup.cfg", encoding="utf-8")
    return parser


def words(text):
    return re.findall(r"[\w.:/-]+", text)


def requirements(folder):
    """Return the names of the import packages that a distribution requires."""
    found = re.findall(r"(?m)^\s*([\w-]+)", metadata(folder)["options"]["install_requires"])
    named = {"fcp_core" if name == "fcp-server" else name.replace("-", "_") for name in found}
    # One package of many distributions.
    return named | {"opentelemetry" for name in named if name.startswith("opentelemetry")}


def entry_points(folder):
    """Yield the plugins; a distribution may have none and only bring code that ours looks for."""
    lines = metadata(folder).get("options.entry_points", "fcp", fallback="").strip()
    for line in lines.splitlines():
        name, _, value = line.partition("=")
        yield importlib.metadata.EntryPoint(name.strip(), value.strip(), "fcp")


def test_there_are_some():
    assert {"aggregators/robust", "plugins/webhook"} <= set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_packaged_like_the_others(folder):
    parser = metadata(folder)
    assert parser["metadata"]["name"].startswith("fcp-server-")
    assert "fcp-server>=" in parser["options"]["install_requires"]
    listed = set(parser["options"]["packages"].split())
    source = ROOT / folder / "src"
    found = {
        ".".join(path.parent.relative_to(source).parts) for path in source.rglob("__init__.py")
    }
    assert listed == found
    assert all((source / name / "py.typed").exists() for name in listed if "." not in name)
    assert list((ROOT / folder / "tests").glob("test_*.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_has_the_version_of_all_and_requires_it(folder):
    """``make version VERSION=1.2.3`` writes it into each."""
    version = metadata(".")["metadata"]["version"]
    major, minor = map(int, version.split(".")[:2])
    end = f"{major}.{minor + 1}" if major == 0 else major + 1
    assert metadata(folder)["metadata"]["version"] == version
    text = (ROOT / folder / "setup.cfg").read_text(encoding="utf-8")
    ranges = set(re.findall(r"fcp-server[\w\[\]-]*([<>=].*)", text))
    assert ranges == {f">={major}.{minor},<{end}"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_readme_says_how_to_install_it_in_a_checkout(folder):
    """Together with the root, since no index may have its distribution."""
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"pip install \. \./{folder}\b", readme)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tools_of_the_repository_know_it(folder):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    source = f"{folder}/src"
    assert source in words(parser["tool:pytest"]["pythonpath"])
    assert source in words(parser["mypy"]["files"])
    assert f"$MYPY_CONFIG_FILE_DIR/{source}" in parser["mypy"]["mypy_path"].split(":")


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_uses_public_names_of_what_it_requires(folder):
    """It sees nothing of ours that a stranger would not, not even the built-in plugins."""
    allowed = set(sys.stdlib_module_names) | requirements(folder)
    allowed |= set(metadata(folder)["options"]["packages"].split())
    # What fcp-server brings itself may be used with it.
    allowed |= {"click", "google", "numpy", "typing_extensions"}
    for path in (ROOT / folder / "src").rglob("*.py"):
        # A module for tests is imported by tests only, which have the packages of "testing".
        more = {"pytest"} if path.stem == "testing" else set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert name.split(".")[0] in allowed | more, f"{path}: {name}"
                private = [part for part in name.split(".") if re.match(r"_(?!_)", part)]
                assert not private or not name.startswith("fcp_core"), f"{path}: {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_plugin_loads_and_its_options_are_in_its_readme(folder, tmp_path):
    points = list(entry_points(folder))
    for point in points:
        plugin = point.load()
        plugin = plugin() if isinstance(plugin, type) else plugin
        assert check_plugin(PluginSource(point.name, point.load, "the test"), plugin) == []
    installed = importlib.metadata.entry_points(group="fcp")
    ours = [point for point in installed if point.name.startswith("builtin_")]
    plugins = Plugins.load(environ={}, working_folder=tmp_path, entry_points=[*ours, *points])
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    names = {point.name for point in points}
    for value in plugins.config.options():
        if any(f"plugin {name!r} " in value.option.declared_by for name in names):
            assert f"`{value.option.name}`" in readme


@pytest.mark.parametrize("folder", FOLDERS)
def test_whoever_lacks_it_is_told_what_to_install(folder, tmp_path):
    """The name of what it offers leads to its distribution; aggregators of protocols come along."""
    ours = [
        p for p in importlib.metadata.entry_points(group="fcp") if p.name.startswith("builtin_")
    ]
    without = Plugins.load(environ={}, working_folder=tmp_path, entry_points=ours)
    points = [*ours, *entry_points(folder)]
    plugins = Plugins.load(environ={}, working_folder=tmp_path, entry_points=points)
    new = {(offer.kind, offer.name) for offer in plugins.offers()}
    new -= {(offer.kind, offer.name) for offer in without.offers()}
    for kind, name in new:
        if name in plugins.aggregators and plugins.aggregators[name].protocol:
            continue
        if kind == "command":
            with pytest.raises(UsageError) as refused:
                refuse_uninstalled(name)
            told = str(refused.value)
        else:
            told = without.offered.missing(kind, name)
        assert f"pip install {metadata(folder)['metadata']['name']}" in told, (kind, name)
