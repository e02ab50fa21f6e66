"""The notebooks are what their scripts say, and run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*_*.py"))


def load_runner():
    spec = importlib.util.spec_from_file_location("notebook_runner", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebooks_are_those_of_the_scripts():
    runner = load_runner()
    assert {path.with_suffix(".py") for path in FOLDER.glob("*.ipynb")} == set(SCRIPTS)
    for path in SCRIPTS:
        written = path.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert written == runner.notebook(path.read_text(encoding="utf-8")), (
            "run 'python examples/notebooks/run.py --write'"
        )
        assert all(cell["source"] for cell in json.loads(written)["cells"])


@pytest.mark.slow
@pytest.mark.tff
@pytest.mark.timeout(600)
def test_the_notebooks_run():
    pytest.importorskip("tensorflow_federated")
    done = subprocess.run(
        [sys.executable, FOLDER / "run.py", *(path.name for path in SCRIPTS)],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    shown = dict(re.findall(r"^(\w+\.py): (.*)$", done.stdout, re.M))
    # A device alone may give all contributions to a round; it knows half of the digits.
    assert max(ast.literal_eval(shown["image_classification.py"])) > 0.3
    found = ast.literal_eval(shown["notebook_to_fleet.py"])
    assert found == [{"mean": 20.5, "largest": 22.0}] * 3
