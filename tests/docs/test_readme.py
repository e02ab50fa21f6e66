"""The README's code, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcp_core.client import write_tfrecord
from fcp_core.lab import DeviceModel, Scenario, TaskModel, simulate
from fcp_core.plugins.manager import Plugins

README = Path(__file__).parents[2] / "README.md"


def block(language: str, containing: str) -> str:
    """Return the one fenced block of a language that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)
    (found,) = (text for text in blocks if containing in text)
    return str(found)


def test_the_plugin_of_20_lines_loads_and_its_effect_is_seen(tmp_path: Path) -> None:
    code = block("python", '"""coin.py"""')
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "coin.py").write_text(code)
    (tmp_path / "setup.cfg").write_text(block("ini", "coin"))
    plugins = Plugins.load(working_folder=tmp_path, environ={})
    assert type(plugins.make_selection_policy()).__name__ == "Coin"
    coin, fifo = simulate(
        "coin",
        "fifo",
        plugins=plugins,
        scenario=Scenario(DeviceModel(count=2000), hours=6, tasks=(TaskModel(goal_count=20),)),
    )
    assert 2 * len(coin.completed) < len(fifo.completed)
    assert coin.waste < fifo.waste


@pytest.mark.tff
@pytest.mark.slow
def test_the_federated_program_runs_with_the_clients_that_it_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_federated")
    (tmp_path / "program.py").write_text(block("python", "async def program()"))
    program = subprocess.Popen(
        [sys.executable, "-u", "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    clients = []
    try:
        assert program.stdout is not None  # asked for above
        url = program.stdout.readline().split()[-1]
        for number in (1, 10, 100):
            write_tfrecord(tmp_path / f"{number}.tfrecord", [str(number).encode()])
            options = ["--num-rounds", "-1", "--sleep-after-round-secs", "0.1"]
            data = ["--tfrecord", f"app:/numbers={tmp_path / str(number)}.tfrecord"]
            where = ["--server", url, "--population", "readme/numbers"]
            clients.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fcp_core", "client", *where, *data, *options],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        output, _ = program.communicate(timeout=120)
    finally:
        for process in (program, *clients):
            process.kill()
            process.wait()
    assert program.returncode == 0
    # A device may contribute to a round more than once, so only the form of the sums is certain.
    rounds = [int(n) for n in re.findall(r"this round: (\d+)", output)]
    assert len(rounds) == 2
    assert f"all rounds: {sum(rounds)}" in output
