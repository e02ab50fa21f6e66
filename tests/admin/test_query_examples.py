"""The example of queries, as its user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlglot")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("question", ["launches", "crashes", "latency"])
def test_an_answer_of_1000_phones_is_that_of_one_database(question, tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples" / "queries" / "run.py")),
            *("--question", question, "--folder", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{question}: 1000 phones" in result.stdout
    assert "rows are right" in result.stdout
    assert (tmp_path / f"{question}.csv").stat().st_size > 100
    assert "<svg" in (tmp_path / f"{question}.svg").read_text()
