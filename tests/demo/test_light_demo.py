"""``fcp demo --light``: what it trains on, and that it needs nothing but fcp-server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fcp_core.commands.main import cli
from fcp_platform.demo.light_digits import COLLECTION_URI, evaluate, initial, train, write

FCP = Path(sys.executable).with_name("fcp")
#: As where no extra is installed, in every process that starts.
WITHOUT_EXTRAS = (
    "import sys\nfor name in ('matplotlib', 'pyarrow', 'sklearn', 'scipy', 'tensorflow',\n"
    "             'tensorflow_federated', 'hypothesis', 'pytest'):\n    sys.modules[name] = None\n"
)


def test_a_hand_writes_the_same_again_and_another_one_otherwise():
    first = write(3, seed=1, count=40)
    assert first.tobytes() == write(3, seed=1, count=40).tobytes()
    assert first.tobytes() != write(4, seed=1, count=40).tobytes()
    assert first["pixels"].shape == (40, 64)
    assert 0 <= first["pixels"].min() < 0.1
    assert 0.6 < first["pixels"].max() <= 1
    assert COLLECTION_URI.startswith("app:/")


@pytest.mark.slow
def test_digits_can_be_told_apart_and_are_not_all_the_same():
    """The network learns most of what other hands wrote, and not all in one pass."""
    many = np.concatenate([write(hand, 0, 60) for hand in range(20)])
    others = np.concatenate([write(hand, 0, 60) for hand in range(100, 105)])
    network = initial(0)
    loss, guessed = evaluate(network, others)
    assert guessed < 0.4
    once = evaluate(train(network, many, 1, 0.1, 8), others)
    often = evaluate(train(network, many, 20, 0.1, 8), others)
    assert guessed < once[1] < often[1]
    assert often[1] > 0.85
    assert often[0] < once[0] < loss


@pytest.mark.parametrize("kind", [["--light"], []])
def test_options_before_the_command_are_the_server_s(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for problem, *given in (
        ("selection: no active plugin offers", "--set", "selection=nothing"),
        ("my.cfg", "--config", "my.cfg"),
    ):
        refused = CliRunner().invoke(cli, [*given, "demo", *kind])
        assert (refused.exit_code, problem in refused.output) == (2, True), refused.output


@pytest.mark.slow
def test_it_trains_with_what_fcp_server_brings(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    done = subprocess.run(
        [FCP, "demo", "--light", "--rounds", "6", "--devices", "12", "--contributions", "6"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)", done.stdout)]
    assert len(accuracies) == 6
    assert accuracies[-1] > accuracies[0]
    assert re.search(r"Accuracy on 360 held-out digits: 0\.\d+ after 6 rounds", done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sitecustomize.py"]


def test_what_it_cannot_do_is_said(tmp_path):
    done = subprocess.run(
        [FCP, "demo", "--light", "--resume"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "leave out --resume" in done.stderr
    assert "Traceback" not in done.stderr
