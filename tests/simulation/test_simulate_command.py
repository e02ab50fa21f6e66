"""``fcp simulate``, run as users run it: the installed script, in a process of its own."""

import csv
import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("fcp")
SMALL = ("--devices", "200", "--hours", "4", "--goal", "5", "--retry", "5m-15m")


@pytest.fixture
def simulate(tmp_path):
    """Run ``fcp simulate`` in an empty folder."""

    def run(*arguments, before=()):
        environ = {name: value for name, value in os.environ.items() if name[:4] != "FCP_"}
        return subprocess.run(
            [SCRIPT, *before, "simulate", *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_policies_side_by_side(simulate, tmp_path):
    files = ("--csv", "rounds.csv", "--timeline", "load.csv", "--plot", "plot.svg")
    result = simulate("fifo", "uniform:window=30s", *SMALL, *files)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    shown = {cells[0]: cells for cells in lines}
    with open(tmp_path / "rounds.csv", encoding="utf-8", newline="") as file:
        rounds = list(csv.DictReader(file))
    for policy in ("fifo", "uniform:window=30s"):
        own = [row for row in rounds if row["policy"] == policy]
        completed = [row for row in own if row["state"] == "completed"]
        assert int(shown[policy][1]) == len(completed) > 0
        assert int(shown[policy][5]) == sum(int(row["assigned"]) for row in own)
        for row in own:
            ended = ("contributed", "pending", "round_over", "computation", "assignment_timeout")
            total = sum(int(row[name]) for name in (*ended, "silent", "other"))
            assert int(row["assigned"]) == total
        for row in completed:
            assert row["contributed"] == "5"
            duration = float(row["closed"]) - float(row["opened"])
            assert float(row["duration"]) == pytest.approx(duration, abs=0.002)
    with open(tmp_path / "load.csv", encoding="utf-8", newline="") as file:
        minutes = [row for row in csv.DictReader(file) if row["policy"] == "fifo"]
    assert [int(row["minute"]) for row in minutes] == list(range(240))
    mean = sum(int(row["check_ins"]) for row in minutes) / (4 * 3600)
    assert float(shown["fifo"][-3]) == pytest.approx(mean, abs=0.06)
    assert int(shown["fifo"][-2]) == max(int(row["peak"]) for row in minutes)
    texts = [element.text for element in ET.parse(tmp_path / "plot.svg").iter() if element.text]
    assert "200 devices, 4 h, rounds of 5" in texts
    assert "uniform:window=30s" in texts


def test_the_same_seed_writes_the_same_file(simulate):
    first, again, other = (
        simulate("weighted", *SMALL, "--seed", seed, "--csv", "-") for seed in ("1", "1", "2")
    )
    assert first.stdout.startswith("policy,task,opened,closed,")
    assert first.stdout == again.stdout != other.stdout


def test_options_come_from_the_configuration_too(simulate):
    slow = simulate(
        "uniform", *SMALL, "--csv", "-", before=("--set", "selection.uniform.window=10m")
    )
    fast = simulate("uniform", *SMALL, "--csv", "-")
    assert slow.returncode == fast.returncode == 0
    assert slow.stdout.count("completed") < fast.stdout.count("completed")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["fifi"], "Did you mean 'fifo'"),
        (["uniform:window=soon"], "is not a duration"),
        (["fifo", "--devices", "2000000"], "1 to 1,000,000 devices"),
        (["fifo", "--retry", "1h"], "two durations such as 1h-3h"),
        (["fifo", "--pause", "soon"], "is not a duration"),
        (["fifo", "--tasks", "0"], "--tasks must be at least 1"),
        (["fifo", *SMALL, "--csv", "no/such/folder.csv"], "cannot be written"),
        ([], "POLICY"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(simulate, arguments, wrong):
    result = simulate(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert wrong in result.stderr
    assert "Traceback" not in result.stderr


def test_a_sweep_is_the_runs_one_by_one(simulate):
    def lines(*arguments, before=()):
        result = simulate(*SMALL, *arguments, "--csv", "-", before=before)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()[1:]

    varied = ("fifo", "uniform", "--vary", "goal=3,5", "--vary", "seed=1")
    both = lines(*varied)
    for policy, goal in itertools.product(("fifo", "uniform"), "35"):
        label = f"{policy} goal={goal} seed=1,"
        own = [line.removeprefix(label) for line in both if line.startswith(label)]
        alone = lines(policy, "--goal", goal, "--seed", "1")
        assert own == [line.removeprefix(f"{policy},") for line in alone]
        assert own
    # On an engine that the configuration chooses, here on threads.
    assert lines(*varied, before=("--set", "engine=local")) == both


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--vary", "goals=1"), "there is no option 'goals'; there are alignment, deadline,"),
        (("--vary", "goal"), "give goal=VALUE,VALUE once"),
        (("--vary", "goal=1", "--vary", "goal=2"), "give goal=VALUE,VALUE once"),
        (("--vary", "goal=1,many"), "'many' is not a valid integer"),
        (("--cluster", "tcp://127.0.0.1:9"), "--cluster needs an engine that takes the address"),
    ],
)
def test_a_sweep_that_cannot_be(simulate, arguments, expected):
    result = simulate("fifo", *SMALL, *arguments)
    assert result.returncode == 2
    assert expected in " ".join(result.stderr.split())
