"""The pages that a newcomer reads first: their code is run, their configuration loaded."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcp_core.admin.client import AdminClient
from fcp_core.client import Client, PythonTaskExecutor, write_tfrecord
from fcp_core.lab import DeviceModel, Scenario, TaskModel, simulate
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.python_plan import KIND
from fcp_core.rounds.policies import CheckIn
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server
from fcp_core.tasks.python import PythonTask
from fcp_core.tasks.taskfile import read_task_file
from fcp_core.testing.servers import RunningServer
from fcp_plugins.api_keys import HEADER, APIKeys
from fcp_robust.plugin import RobustPlugin
from fcp_secagg import plugin as secure_aggregation

ROOT = Path(__file__).parents[2]
COOK_BOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
PROGRAM = (ROOT / "docs" / "first-program.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}(?: title=\S+)?\n(.*?)^```$", page, re.M | re.S)


def block(page: str, language: str, containing: str) -> str:
    """Return the one fenced block of a language that contains a text."""
    (found,) = (text for text in blocks(page, language) if containing in text)
    return found


def test_the_readme_is_two_screens_long() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80


def test_a_key_and_its_line_are_made_as_the_page_on_security_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^    KEY=.*\n    printf.*$", page, re.M)
    keys = tmp_path / "keys"
    script = textwrap.dedent(recipe).replace("/etc/fcp/keys", str(keys))
    key = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True).stdout
    plugin = APIKeys()
    overrides = {"api_keys.file": str(keys)}
    plugins = Plugins.load(environ={}, overrides=overrides, extra=[plugin])
    plugin.fcp_startup(plugins.config)
    assert plugin.fcp_authenticate({HEADER: key.strip()}, None) == "key:my app"


@pytest.mark.parametrize("text", blocks(COOK_BOOK, "ini"), ids=lambda text: text.split("\n")[1])
def test_each_recipe_is_a_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text(text)
    for name in ("coin.py", "only.py"):
        (tmp_path / name).write_text(block(COOK_BOOK, "python", f'"""{name}"""'))
    (tmp_path / "keys").write_text("")
    installed = [RobustPlugin(), secure_aggregation]
    plugins = Plugins.load(environ={}, working_folder=tmp_path, extra=installed)
    population = plugins.for_population("phones/all")
    for name, _ in population.selection_chain():
        assert population.make_selection_policy(name)
    assert population.make_eligibility_policies() is not None


def test_the_task_files_of_recipes_are_read(tmp_path: Path) -> None:
    (text,) = blocks(COOK_BOOK, "toml")
    (tmp_path / "task.toml").write_text(text)
    spec = read_task_file(tmp_path / "task.toml").to_spec()
    assert (spec.goal_count, spec.minimum_count, spec.deadline) == (100, 80, 600)


def test_the_plugin_of_20_lines_loads_and_its_effect_is_seen(tmp_path: Path) -> None:
    code = block(COOK_BOOK, "python", '"""coin.py"""')
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "coin.py").write_text(code)
    (tmp_path / "setup.cfg").write_text(block(COOK_BOOK, "ini", "coin"))
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


def test_a_recipe_says_why_a_task_waits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "task.toml").write_text(block(COOK_BOOK, "toml", "[task]"))
    names: dict[str, Any] = {}
    exec(block(COOK_BOOK, "python", '"""waiting.py"""'), names)
    token = "a-token-of-the-cook-book"
    plugins = Plugins.load(
        environ={}, working_folder=tmp_path, overrides={"admin.token": token, "storage": "memory"}
    )
    with RunningServer(Server(plugins, populations=["phones/all"])) as server:
        server.submit(read_task_file(tmp_path / "task.toml").to_spec())
        names["why"](server.url, token)
    assert capsys.readouterr().out == block(COOK_BOOK, "output", "launches: ")


def test_a_recipe_goes_on_where_its_program_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block(COOK_BOOK, "python", '"""rounds.py"""'), names)
    tasks = {"add_one": lambda arrays, examples, settings: ({"w": arrays["w"] + 1}, 1.0)}
    executors = {KIND: PythonTaskExecutor(tasks)}
    task = PythonTask("phones/all", "rounds", "add_one", goal_count=1)
    token = "a-token-of-the-cook-book"
    overrides = {"admin.token": token, "storage": "memory", "retry_min": 0, "retry_max": 0}
    plugins = Plugins.load(environ={}, working_folder=tmp_path, overrides=overrides)

    def live(client: Client) -> None:
        for _ in client.run(num_rounds=-1):
            pass

    with (
        RunningServer(Server(plugins, populations=["phones/all"])) as server,
        AdminClient(server.url, token) as admin,
        Client(server.url, "phones/all", stores={}, executors=executors) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        device = threads.submit(live, client)
        given = (server.url, token, task)
        try:
            trained = names["go_on"](*given, {"w": np.zeros(2, np.float32)}, 2)
            # Killed after it has offered the third round, which then ends.
            admin.wait(admin.submit(task.to_spec(trained), key="rounds 3").task_id)
            again = names["go_on"](*given, {"w": np.full(2, 99, np.float32)}, 4)
        finally:
            client.interrupt()
        device.result()
        kept = admin.list()
    assert (trained["w"].tolist(), again["w"].tolist(), kept) == ([2, 2], [4, 4], [])


def test_a_recipe_lets_only_some_devices_in(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text(block(COOK_BOOK, "python", '"""only.py"""'))
    (tmp_path / "setup.cfg").write_text(block(COOK_BOOK, "ini", "only"))
    (tmp_path / "keys").write_text("")
    plugins = Plugins.load(working_folder=tmp_path, environ={})
    spec = TaskSpec("people", "ward_study", b"", b"", b"", 1)
    (policy,) = plugins.for_task(spec).own_eligibility_policies() or ()

    def let_in(key: str | None) -> bool:
        check_in = CheckIn("phones/all", "", "", False, True, principal=key and f"key:{key}")
        return plugins.judge(policy, check_in, 0.0) is None

    assert [let_in(key) for key in ("st mary", "charite", "elsewhere", None)] == [1, 1, 0, 0]


@pytest.mark.tff
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_federated_program_runs_with_the_clients_that_it_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_federated")
    (tmp_path / "program.py").write_text(block(PROGRAM, "python", "async def program()"))
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
            where = ["--server", url, "--population", "first/numbers"]
            clients.append(
                subprocess.Popen(
                    [sys.executable, "-m", "fcp_core", "client", *where, *data, *options],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        output, _ = program.communicate(timeout=500)
    finally:
        for process in (program, *clients):
            process.kill()
            process.wait()
    assert program.returncode == 0
    # A device may contribute to a round more than once, so only the form of the sums is certain.
    rounds = [int(n) for n in re.findall(r"this round: (\d+)", output)]
    assert len(rounds) == 2
    assert f"all rounds: {sum(rounds)}" in output
