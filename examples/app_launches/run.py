"""Counts app launches over many devices: a server, a task without TensorFlow, simulated devices.

Run it from anywhere; ``--help`` lists what can be changed. The server and the devices are processes
of their own. The result goes to a CSV file and a bar chart, and is compared with the truth, which
only a simulation knows.
"""

from __future__ import annotations

import argparse
import csv
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from devices import launches

from fcp_core.admin import AdminClient
from fcp_core.tasks.plots import bar_chart
from fcp_core.tasks.tables import Table
from fcp_core.tasks.taskfile import read_task_file

HERE = Path(__file__).parent


def main() -> int:
    """Run the example; return 0 if the result is the truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=8, help="devices at a time, per process")
    parser.add_argument("--folder", type=Path, default=Path("app-launches-out"))
    parser.add_argument("--port", type=int, default=8094)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    url = f"http://localhost:{options.port}/"
    token = secrets.token_hex(16)
    processes = []
    server = subprocess.Popen(
        [sys.executable, "-m", "fcp_core", "--config", str(HERE / "fcp.cfg"), "serve"],
        cwd=options.folder,
        env={
            **os.environ,
            "FCP_ADMIN__TOKEN": token,
            "FCP_SERVER__PORT": str(options.port),
            "FCP_STORAGE_SQLITE__PATH": "tasks.sqlite",
        },
    )
    try:
        with AdminClient(url, token) as client:
            described = read_task_file(HERE / "task.toml")
            counts = {"goal_count": options.devices, "minimum_count": options.devices}
            task_id = client.submit(described.to_spec().replace(**counts)).task_id
            print(f"task {task_id}", flush=True)
            started = time.monotonic()
            share = -(-options.devices // options.processes)
            for first in range(0, options.devices, share):
                count = min(share, options.devices - first)
                command = [sys.executable, str(HERE / "devices.py"), url]
                command += [str(first), str(count), str(options.threads)]
                processes.append(subprocess.Popen(command, stdin=subprocess.PIPE))
            for task in client.watch(task_id, interval=5):
                print(f"{task.state}: {task.contributed} of {task.goal_count}", flush=True)
            task.check()
            seconds = time.monotonic() - started
            table = Table.of(client.result(task_id))
            for process in processes:
                process.wait()
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
        server.terminate()
        server.wait()
    table.write(options.folder / "launches.csv")
    chart = options.folder / "launches.svg"
    chart.write_text(bar_chart(table, "App launches"), encoding="utf-8")
    print(
        f"{task.contributed} devices in {seconds:.1f} s; {options.folder / 'launches.csv'}, {chart}"
    )
    return compare(options.folder / "launches.csv", options.devices, described.minimum_group_size)


def compare(path: Path, devices: int, minimum: int | None) -> int:
    """Compare a result with what the devices have; return 0 if they are equal."""
    total: Counter[tuple[str, str]] = Counter()
    owners: Counter[tuple[str, str]] = Counter()
    for device in range(devices):
        counts = launches(device)
        total.update(counts)
        owners.update(counts.keys())
    truth = {key: (total[key], owners[key]) for key in total if owners[key] >= (minimum or 1)}
    with path.open(encoding="utf-8", newline="") as file:
        found = {
            (row["app"], row["part_of_day"]): (int(row["launches"]), int(row["devices"]))
            for row in csv.DictReader(file)
        }
    hidden = len(total) - len(truth)
    if found != truth:
        print(f"the result differs from the truth: {len(found)} groups, expected {len(truth)}")
        return 1
    print(f"all {len(truth)} groups are right; {hidden} are too small to be shown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
