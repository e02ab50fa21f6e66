"""The table of ``make bench``."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "performance.md"


@pytest.fixture
def modules(monkeypatch):
    """Import a benchmark's module as the benchmarks do, and forget it afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = dict(sys.modules)
    yield lambda name: importlib.import_module(name)
    for name in set(sys.modules) - set(known):
        if getattr(sys.modules[name], "__file__", None) and Path(
            sys.modules[name].__file__
        ).is_relative_to(BENCHMARKS):
            del sys.modules[name]


def test_whatever_measures_a_goal_is_in_the_table(modules):
    measuring = set()
    for path in BENCHMARKS.glob("bench_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "goals" for node in tree.body):
            measuring.add(path.stem.removeprefix("bench_"))
    assert measuring == set(modules("report").MODULES)
    page = PAGE.read_text(encoding="utf-8")
    assert measuring == set(re.findall(r"`python benchmarks/bench_(\w+)\.py`", page))


def test_a_goal_is_met_up_to_its_limit(modules):
    goal = modules("goals").Goal
    for at_most, good in ((True, (0.0, 1.29, 1.3)), (False, (1.3, 1.31, 9.0))):
        assert all(goal("g", "w", value, 1.3, at_most=at_most).met for value in good)
    assert not goal("g", "w", 1.3001, 1.3).met
    assert not goal("g", "w", 1.2999, 1.3, at_most=False).met
    assert not goal("g", "w", float("nan"), 1.3).met
    assert not goal("g", "w", float("nan"), 1.3, at_most=False).met


@pytest.fixture
def report(tmp_path):
    """Run the report over made-up benchmarks in a folder of its own."""
    for name in ("report.py", "goals.py"):
        shutil.copy(BENCHMARKS / name, tmp_path)

    def run(*arguments, **benchmarks):
        for name, body in benchmarks.items():
            text = f"from goals import Goal\n\ndef goals(quick):\n    {body}\n"
            (tmp_path / f"bench_{name}.py").write_text(text, encoding="utf-8")
        command = [sys.executable, str(tmp_path / "report.py"), "--only", ",".join(benchmarks)]
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    return run


def rows(output):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]


@pytest.mark.slow
def test_goals_that_are_not_met_are_no_error_and_broken_benchmarks_are(report, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Ours\n<!-- goals: begin -->STALE<!-- goals: end -->\nmore\n")
    fold = "return [Goal('fold', 'one', 1.25, 1.3), Goal('fold', 'two', 1.5, 1.3)]"
    memory = "return [Goal('memory', f'quick {quick}', 200.0, 100, 'MB', at_most=False)]"
    result = report("--quick", "--write", str(page), fold=fold, memory=memory)
    assert result.returncode == 0, result.stderr
    assert rows(result.stdout)[2:] == [
        ["fold", "one", "1.25 x", "at most 1.3 x", "met"],
        ["fold", "two", "1.5 x", "at most 1.3 x", "not met"],
        ["memory", "quick True", "200 MB", "at least 100 MB", "met"],
    ]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Ours\n<!-- goals: begin -->\n\nMeasured on ")
    assert text.endswith("<!-- goals: end -->\nmore\n")
    assert result.stdout.strip() in text
    assert "STALE" not in text
    broken = report(fold="raise RuntimeError('no')", loop="return []", memory=memory)
    assert broken.returncode == 1
    assert [(row[0], row[-1]) for row in rows(broken.stdout)[2:]] == [
        ("fold", "broken"),
        ("loop", "broken"),
        ("memory", "met"),
    ]
    assert "RuntimeError: no" in broken.stderr


@pytest.mark.slow
def test_what_is_measured_anew_takes_the_place_of_its_own_rows(report, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- goals: begin --><!-- goals: end -->\n")
    goal = "return [Goal('{}', 'what', {}, 1.3)]"
    others = {"load": goal.format("scale", 1), "fold": "raise RuntimeError('no')"}
    report("--write", str(page), **others, memory=goal.format("memory", 2))
    result = report(
        "--write", str(page), fold=goal.format("fold", 1.2), loop=goal.format("loop", 3)
    )
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert [row[::2] for row in rows(text) if row[3:]][2:] == [
        ["scale", "1 x", "met"],
        ["fold", "1.2 x", "met"],
        ["memory", "2 x", "not met"],
        ["loop", "3 x", "not met"],
    ]
    assert text.count("Measured on ") == 1
    assert "\nfold, loop: measured on " in text


def test_the_page_says_on_what_it_was_measured_and_nothing_of_where(modules):
    machine = modules("report").machine()
    assert re.search(r"\d+ cores, .* Python 3\.\d+\.\d+, numpy [\d.]+", machine)
    import platform

    assert platform.node() not in machine


def test_each_benchmark_stands_once_where_it_ran_last(modules):
    report = modules("report")
    old = ["\n\nMeasured first: here.", "fold, load: ran on Monday.", "load: ran on Tuesday.", ""]
    again = report.headings(old, [report.Part("loop", (), 1.0)], "ran on Tuesday.")
    assert again.split("\n\n") == [
        "Measured first: here.",
        "fold: ran on Monday.",
        "load, loop: ran on Tuesday.",
    ]
    once_more = report.headings(again.split("\n\n"), [report.Part("fold", (), 1.0)], "ran now.")
    assert once_more.split("\n\n")[1:] == ["fold: ran now.", "load, loop: ran on Tuesday."]
