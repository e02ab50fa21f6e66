"""What the tests of plugins share: modules and distributions that exist for a test only."""

import importlib.metadata
import sys
import textwrap
from types import SimpleNamespace

import pytest

from fcp_core.plugins.config import OptionRegistry
from fcp_core.plugins.manager import Plugins
from fcp_core.plugins.options import add_core_options
from fcp_core.testing.pytest_plugin import fcp_client, fcp_server  # noqa: F401


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write importable modules, and distributions that announce them."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def write(name, source):
        path = folder / f"{name}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    def point(name, value, distribution="demo-dist", version="1.2"):
        site = tmp_path / f"site-{distribution}-{name}-{value.partition(':')[0]}"
        info = site / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[fcp]\n{name} = {value}\n")
        (found,) = importlib.metadata.distributions(path=[str(site)])
        (point,) = found.entry_points
        return point

    yield SimpleNamespace(write=write, point=point)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def load(tmp_path):
    """Load plugins in an empty folder: the built-in ones, and those given."""

    def load(*points, builtin=True, **arguments):
        if builtin:
            installed = importlib.metadata.entry_points(group="fcp")
            points = (*[p for p in installed if p.name.startswith("builtin_")], *points)
        arguments.setdefault("environ", {})
        arguments.setdefault("working_folder", tmp_path)
        return Plugins.load(entry_points=points, **arguments)

    return load


@pytest.fixture
def registry():
    """The declarations of the core's options, and of a plugin's."""
    options = OptionRegistry()
    add_core_options(options)
    options.owner = "plugin 'demo' from demo-dist 1.2"
    options.add("storage.demo", "path", "path", "demo.db", "a file")
    options.add("storage.demo", "mode", "choice", "slow", "how", choices=("slow", "fast"))
    options.add("storage.demo", "password", "str", None, "a secret", secret=True)
    options.add("storage.demo", "workers", "int", 2, "how many", minimum=1)
    return options
