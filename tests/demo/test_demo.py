"""``fcp demo`` as its user runs it: real processes, real training, a real kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_federated")

pytestmark = [pytest.mark.tff, pytest.mark.slow]

SMALL = ["--rounds", "3", "--devices", "6", "--contributions", "3", "--processes", "1"]


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "fcp_core", "demo", "--folder", str(folder), *options]


def run(
    folder: Path, *options: str, status: int = 0, plugins: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(folder, *options),
        # Distributions that are not installed are on the path of the tests only.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "FCP_PLUGINS": plugins,
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == status, done.stderr[-4000:]
    return done


def outcome(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return loaded


def members_of(group: int) -> list[int]:
    """Return the processes of a session, so that orphans are seen as well as children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def test_the_default_run_reaches_its_accuracy(tmp_path: Path) -> None:
    done = run(tmp_path)
    result = outcome(tmp_path)
    assert len(result["accuracy"]) == 10
    assert result["accuracy"][-1] >= 0.90
    assert f"{result['accuracy'][-1]:.3f} after 10 rounds" in done.stdout
    # More devices work than are needed, and who comes too late is told OK as well.
    assert 100 <= result["devices"]["contributed"] <= 200
    assert "Traceback" not in done.stderr
    # The devices ended while the server was there.
    assert "refused" not in done.stderr
    assert len(list((tmp_path / "devices").glob("*/history.sqlite"))) == 30
    assert list((tmp_path / "summaries").rglob("events.out.tfevents*"))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the processes left over")
def test_a_killed_run_leaves_no_process_and_goes_on_where_it_was(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, *SMALL, "--aggregator", "unweighted_mean"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 500  # a busy machine takes its time
    while not (tmp_path / "state" / "round_1").exists():
        assert process.poll() is None, "the demonstration ended before its first round did"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(members_of(process.pid)) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while members_of(process.pid):
        assert time.monotonic() < deadline, "processes outlive the program"
        time.sleep(0.05)
    finished = len(list((tmp_path / "state").glob("round_*")))
    run(tmp_path, *SMALL, "--resume")
    assert len(outcome(tmp_path)["accuracy"]) == 3 - finished
    assert (tmp_path / "state" / "round_3").exists()


def test_a_round_under_masks_is_completed_while_devices_vanish(tmp_path: Path) -> None:
    """How well all rounds learn so is a goal of `bench_demo.py`, and in `test_secagg_http.py`."""
    pytest.importorskip("cryptography")
    options = ["--rounds", "1", "--devices", "10", "--contributions", "6", "--processes", "2"]
    masked = ["--protocol", "secagg", "--drop", "0.2"]
    done = run(tmp_path, *options, *masked, plugins="fcp_secagg.plugin")
    result = outcome(tmp_path)
    assert len(result["accuracy"]) == 1
    assert f"{result['accuracy'][0]:.3f} after 1 rounds" in done.stdout
    # Beside it is what TFF itself makes of the same in the clear.
    (clear,) = result["in_the_clear"]
    assert 0 < clear < 1
    assert f"nobody vanishing: {clear:.3f}" in " ".join(done.stdout.split())
    # Which devices vanish at first follows from their names.
    assert result["devices"]["failed"] > 0
    assert result["devices"]["contributed"] > 0
    # What TFF's aggregators leave unused in graphs is nobody's business.
    assert "never used" not in done.stdout + done.stderr


def test_privacy_is_bought_and_booked(tmp_path: Path) -> None:
    """The noise of so few devices leaves no accuracy to speak of, here and in TFF alike."""
    done = run(tmp_path, *SMALL, "--rounds", "2", "--privacy", "8", "--clip", "0.5")
    result = outcome(tmp_path)
    assert len(result["accuracy"]) == 2
    # Both rounds together are all of the budget.
    assert 7.99 < result["spent"]["epsilon"] < 8.01
    assert 0 <= result["spent"]["simulated_accuracy"] <= 1
    assert "Epsilon 8.00 at delta 1e-05 was booked" in " ".join(done.stdout.split())


def test_mistakes_are_answered_in_a_sentence(tmp_path: Path) -> None:
    for options, sentence in (
        (["--resume"], "there is no program state in"),
        (["--devices", "3", "--contributions", "4"], "--contributions 4 must be between 1 and"),
        (["--privacy", "8", "--resume"], "--privacy goes with none of --aggregator"),
        (["--aggregator", "medain"], "Did you mean 'median'?"),
        (["--protocol", "secag"], "no active plugin offers the protocol 'secag'"),
    ):
        done = run(tmp_path / "none", *options, status=2)
        assert sentence in " ".join(done.stderr.split())
        # Before anything is started or written.
        assert not (tmp_path / "none").exists()
        assert "Traceback" not in done.stderr
