"""``fcp bench load``, run as users run it: the installed script, in a process of its own."""

import json
import os
import select
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from fcp_core.bench.server import OwnServer, quantile_ms
from fcp_core.bench.task import BenchTask
from fcp_core.errors import UsageError

SCRIPT = Path(sys.executable).with_name("fcp")


@pytest.fixture
def bench(tmp_path):
    """Run ``fcp bench load`` in an empty folder."""

    def run(*arguments, before=(), **environ):
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "FCP_"}
        return subprocess.run(
            [SCRIPT, *before, "bench", "load", *map(str, arguments)],
            cwd=tmp_path,
            env={**inherited, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.slow
def test_a_run_with_a_server_of_its_own(bench, tmp_path):
    files = ("--json", "run.json", "--plot", "run.svg")
    settings = ("--set", "selection=uniform", "--set", "selection.uniform.window=50ms")
    result = bench("--clients", 50, "--elements", 1000, "--gzip", *files, before=settings)
    assert (result.returncode, result.stderr) == (0, "")
    assert "50 contributed" in result.stdout
    assert "round completed: 50 of 50, the result is exact" in result.stdout
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["outcomes"] == {"contributed": 50}
    assert run["task"] == {"state": "completed", "contributed": 50, "goal": 50, "exact": True}
    # Whoever comes while the window is open must poll.
    assert run["steps"]["poll"]["count"] > 0
    assert run["steps"]["submit"]["p50"] <= run["steps"]["submit"]["longest"]
    assert run["server"]["cpu_seconds"] > 0
    assert 0 < run["server"]["idle_mb"] <= run["server"]["peak_mb"]
    ET.parse(tmp_path / "run.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.svg"]


@pytest.mark.slow
def test_a_server_that_runs_already(bench, tmp_path):
    (tmp_path / "update.ckpt").write_bytes(BenchTask(elements=2).bodies(False)[0])
    with OwnServer(["--set", "storage=memory"]) as server:
        (tmp_path / "token").write_text(server.token, encoding="utf-8")
        common = ("--server", server.url, "--clients", 3, "--elements", 2, "--population", "phones")
        own = bench(*common, "--token-file", "token")
        assert own.returncode == 0, own.stderr
        assert "round completed: 3 of 3, the result is exact" in own.stdout
        refused = bench(*common, FCP_ADMIN__TOKEN="0" * 32)
        assert refused.returncode == 2
        assert "did not take the run's task" in refused.stderr
        nobody = bench(*common, "--task", "none", "--update", "update.ckpt")
        assert nobody.returncode == 1
        assert "3 rejected" in nobody.stdout
        assert "no device contributed" in nobody.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--server", "http://localhost:9/", "--task", "t", "--update", __file__), "be reached"),
        (("--server", "http://localhost:9/"), "there is no admin token"),
        (("--task", "train"), "--server, --task and --update go together"),
        (("--elements", 0), "--elements must be at least 1"),
        (("--clients", 0), "at least one client"),
        (("--set-nothing",), "No such option"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(bench, arguments, message):
    result = bench(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why():
    with pytest.raises(UsageError, match=r"did not start: .*no_such_storage"):
        OwnServer(["--set", "storage=no_such_storage"]).__enter__()


@pytest.mark.slow
def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    """Also if that has no time to say so."""
    code = (
        "import os, sys\n"
        "from fcp_core.bench.server import OwnServer\n"
        "server = OwnServer(['--set', 'storage=memory']).__enter__()\n"
        "print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == -9
    pid = int(ran.stdout)
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watched], [], [], 30)[0], "the server goes on"
    finally:
        os.close(watched)


@pytest.mark.parametrize(
    ("counts", "p99"),
    [
        ({}, None),
        ({0.001: 0, float("inf"): 0}, None),
        ({0.001: 99, 0.01: 100, float("inf"): 100}, 1.0),
        ({0.001: 98, 0.01: 99, float("inf"): 100}, 10.0),
        ({0.001: 0, 0.01: 0, float("inf"): 1}, float("inf")),
    ],
)
def test_a_quantile_of_a_histogram_is_the_bound_of_its_bucket(counts, p99):
    assert quantile_ms(counts, 0.99) == p99
