"""Has devices find out themselves whether they may take part: a server, a plan, ten keyboards.

Run it from anywhere; ``--help`` lists what can be changed. What comes of it is compared with the
truth, which only a simulation knows.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Client, History, make_query_result
from fcp_core.tasks.tables import Table
from fcp_core.tasks.taskfile import read_task_file

HERE = Path(__file__).parent
POPULATION = "keyboards/all"
KEYBOARDS = 10


def taps(number: int) -> list[bytes]:
    """Return what a keyboard remembers: the first ones have too few, the odd ones err too much."""
    count = 12 + 4 * number
    wrong = count // 5 if number % 2 else count // 20
    return [b"wrong"] * wrong + [b"right"] * (count - wrong)


def may_take_part(number: int) -> bool:
    """Whether a keyboard may, by the rule of ``plan.py``."""
    found = taps(number)
    return len(found) >= 20 and found.count(b"wrong") <= 0.1 * len(found)


def check_in(url: str, number: int, folder: Path) -> str:
    """Let a keyboard go through one session; return how it went."""
    counts = {"taps": [len(taps(number))], "keyboards": [1]}
    stores = {
        "app:/taps": CallableStore(lambda selector: taps(number)),
        "app:/counts": CallableStore(
            lambda selector: (), query=lambda query: make_query_result(counts)
        ),
    }
    history = History(folder / f"keyboard-{number}.sqlite")
    with Client(url, POPULATION, stores=stores, history=history) as client:
        return client.run_once().outcome.name


def main() -> int:
    """Run the example; return 0 if what came of it is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("eligibility-out"))
    parser.add_argument("--port", type=int, default=8095)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://localhost:{options.port}/"
    environment = {
        **os.environ,
        "FCP_ADMIN__TOKEN": secrets.token_hex(16),
        "FCP_ADMIN__URL": url,
        "FCP_SERVER__PORT": str(options.port),
    }

    def fcp(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "fcp_core", *arguments]

    for name in ("eligibility.toml", "task.toml"):
        shutil.copy(HERE / name, folder)
    subprocess.run([sys.executable, str(HERE / "plan.py"), str(folder)], check=True)
    server = subprocess.Popen(fcp("serve", "--population", POPULATION), cwd=folder, env=environment)
    try:
        for command in (["set", "eligibility.toml"], ["show", POPULATION]):
            subprocess.run(fcp("eligibility", *command), cwd=folder, env=environment, check=True)
        with AdminClient(url, environment["FCP_ADMIN__TOKEN"]) as admin:
            spec = read_task_file(folder / "task.toml").to_spec()
            first = admin.submit(spec)
            outcomes = [check_in(url, number, folder) for number in range(KEYBOARDS)]
            table = Table.of(admin.result(admin.wait(first.task_id).task_id))
            second = admin.submit(spec)
            again = [check_in(url, number, folder) for number in range(KEYBOARDS)]
            admin.cancel(second.task_id)
    finally:
        server.terminate()
        server.wait()
    right = [number for number in range(KEYBOARDS) if may_take_part(number)]
    took_part = [n for n, outcome in enumerate(outcomes) if outcome == "CONTRIBUTED"]
    total = sum(len(taps(number)) for number in right)
    rows = list(table.rows())
    print(f"keyboards {took_part} took part; {rows[0][0]} taps of {rows[0][1]} keyboards")
    print(f"in the second round: {again.count('REJECTED')} of {KEYBOARDS} were not eligible")
    return 0 if (took_part, rows, set(again)) == (right, [(total, 4)], {"REJECTED"}) else 1


if __name__ == "__main__":
    sys.exit(main())
