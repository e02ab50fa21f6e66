"""The page about selection policies names every policy and option, with its default."""

import re
from pathlib import Path

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_plugins import selection

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    return Plugins.load(environ={}, working_folder=tmp_path_factory.mktemp("empty"))


def test_every_policy_and_option_is_on_the_page(plugins):
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
    assert set(parts) == {factory.name for factory in selection.factories()}
    for name, text in parts.items():
        rows = re.findall(r"^\| (`.*?) \| (.*?) \|", text, re.M)
        described = dict.fromkeys(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows)))
        declared = {
            o.option.name: o
            for o in plugins.config.options()
            if o.option.section == f"selection.{name}" or name in o.option.of
        }
        assert set(described) == set(declared)
        for cell, default in rows:
            names, defaults = re.findall(r"`(\w+)`", cell), default.split(", ")
            if len(names) == len(defaults):
                for option, said in zip(names, defaults, strict=True):
                    value = declared[option].option.default
                    expected = {None: "not set", (): ""}.get(value, value)
                    shown = ", ".join(expected) if isinstance(expected, tuple) else str(expected)
                    assert said in (shown, "all") or float(said) == float(shown)


@pytest.mark.parametrize("block", re.findall(r"^```ini\n(.*?)^```$", PAGE, re.M | re.S))
def test_every_example_loads(block, tmp_path):
    (tmp_path / "setup.cfg").write_text(block)
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    for name, _ in plugins.selection_chain():
        assert plugins.make_selection_policy(name)
