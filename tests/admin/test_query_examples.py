"""The example of queries, as its user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlglot")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_answers_of_1000_phones_are_those_of_one_database(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "queries" / "run.py")),
            *("--folder", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("rows are right") == 3
    for question in ("launches", "crashes", "latency"):
        assert f"{question}: 1000 phones" in result.stdout
        assert (tmp_path / f"{question}.csv").stat().st_size > 100
        assert "<svg" in (tmp_path / f"{question}.svg").read_text()
