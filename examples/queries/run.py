"""Asks 1,000 simulated phones three questions in SQL, and compares the answers with the truth.

Run it from anywhere; ``--help`` lists what can be changed. The server and the phones are in one
process, and speak the protocol over HTTP. The truth is what SQLite answers over the tables of all
phones in one database, which only a simulation has.
"""

from __future__ import annotations

import argparse
import math
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from phones import COLUMNS, make_phone, rows

from fcp_core.admin import AdminClient
from fcp_core.client import Client, Outcome, SQLStore
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server, ServerThread
from fcp_core.tasks.plots import bar_chart
from fcp_core.tasks.sql_query import SqlTask
from fcp_core.tasks.taskfile import read_task_file

HERE = Path(__file__).parent
POPULATION = "phones"
QUESTIONS = ("launches", "crashes", "latency")
#: What a query over all phones together has to say otherwise.
TOGETHER = {
    "DEVICES()": "COUNT(DISTINCT number)",
    "JOIN phone": "JOIN phone USING (number)",
}


def main() -> int:
    """Run the example; return 0 if the answers are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phones", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4, help="phones at a time")
    parser.add_argument("--folder", type=Path, default=Path("queries-out"))
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--question", choices=QUESTIONS, help="one only")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    asked = [options.question] if options.question else QUESTIONS
    token = secrets.token_hex(16)
    plugins = Plugins.load(
        environ={},
        overrides={
            "server.port": str(options.port),
            "storage": "memory",
            "admin.token": token,
            # The phones of the example are in a hurry.
            "retry_min": "0.1s",
            "retry_max": "0.5s",
        },
    )
    with tempfile.TemporaryDirectory() as folder, ServerThread(Server(plugins)) as running:
        url = running.server.url
        paths = [make_phone(Path(folder), number) for number in range(options.phones)]
        with AdminClient(url, token) as admin:
            right = [ask(admin, url, name, paths, options) for name in asked]
    return 0 if all(right) else 1


def ask(admin: AdminClient, url: str, name: str, paths: Sequence[Path], options: Any) -> bool:
    """Ask one question; return whether the answer is the truth."""
    asked = read_task_file(HERE / f"{name}.toml")
    assert isinstance(asked, SqlTask)
    started = time.monotonic()
    spec = asked.to_spec().replace(goal_count=len(paths), minimum_count=len(paths))
    task_id = admin.submit(spec).task_id
    with ThreadPoolExecutor(options.threads) as pool:
        list(pool.map(lambda path: answer(url, path), paths))
    task = admin.wait(task_id)
    task.check()
    table = asked.query.table(admin.result(task_id))
    table.write(options.folder / f"{name}.csv")
    chart = bar_chart(table, name)
    (options.folder / f"{name}.svg").write_text(chart, encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"{name}: {task.contributed} phones in {seconds:.1f} s")
    print(table.to_csv())
    wrong = differences(list(table.rows()), truth(asked.query.sql, len(paths)))
    print("\n".join(wrong) or f"all {len(table.columns[0].values)} rows are right", flush=True)
    return not wrong


def truth(sql: str, phones: int) -> list[tuple[Any, ...]]:
    """Return what SQLite answers over the tables of all phones."""
    for here, there in TOGETHER.items():
        sql = sql.replace(here, there)
    with closing(sqlite3.connect(":memory:")) as database:
        database.create_aggregate("APPROX_QUANTILE", 2, Quantile)
        for table, columns in COLUMNS.items():
            database.execute(f"CREATE TABLE {table} (number, {', '.join(columns)})")
        for number in range(phones):
            for table, added in rows(number).items():
                marks = ", ".join("?" * (1 + len(COLUMNS[table])))
                numbered = [(number, *row) for row in added]
                database.executemany(f"INSERT INTO {table} VALUES ({marks})", numbered)
        return database.execute(sql).fetchall()


class Quantile:
    """An exact quantile, for SQLite."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._quantile = 0.0

    def step(self, value: float, quantile: float) -> None:
        """Take a value."""
        self._values.append(value)
        self._quantile = quantile

    def finalize(self) -> float:
        """Return the smallest value that so many do not exceed."""
        place = max(math.ceil(self._quantile * len(self._values)), 1) - 1
        return sorted(self._values)[place]


def differences(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]]) -> list[str]:
    """Return in words what is not as it should be; if anything."""
    if len(found) != len(wanted):
        return [f"{len(found)} rows instead of {len(wanted)}"]
    return [
        f"{row} instead of {right}"
        for row, right in zip(found, wanted, strict=True)
        if not all(map(near, row, right))
    ]


def near(found: Any, right: Any) -> bool:
    """Whether a value is as it should be; floats may be quantiles, which are off by 1 %."""
    if isinstance(found, float):
        return math.isclose(found, right, rel_tol=0.0101)
    return bool(found == right)


def answer(url: str, path: Path) -> None:
    """Be a phone until it has contributed."""
    with Client(url, POPULATION, stores={"app:/tables": SQLStore(path)}) as client:
        for result in client.run(num_rounds=-1):
            if result.outcome is Outcome.CONTRIBUTED:
                return


if __name__ == "__main__":
    sys.exit(main())
