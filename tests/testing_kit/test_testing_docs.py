"""What docs/testing.md shows works, and what it names is there."""

import re
from pathlib import Path

import pytest

import fcp_core.testing
from fcp_core.testing.kit import Conformance

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_work(number, pytester, monkeypatch):
    monkeypatch.setattr(Conformance, "max_examples", 5)
    pytester.makepyfile(BLOCKS[number])
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] >= 2
    assert not outcomes.keys() & {"failed", "errors", "error"}


def test_the_table_is_complete_and_true():
    rows = re.findall(r"^\| `(\w+Conformance)` \| (.*) \| (.*) \|$", TEXT, re.M)
    kits = {name for name in fcp_core.testing.__all__ if name.endswith("Conformance")}
    assert {name for name, _, _ in rows} == kits
    for name, given, more in rows:
        kit = getattr(fcp_core.testing, name)
        known = {
            *dir(kit),
            *(a for base in kit.__mro__ for a in vars(base).get("__annotations__", ())),
        }
        for word in re.findall(r"`(\w+)", given + more):
            assert word in known, f"{name} has no {word}"
