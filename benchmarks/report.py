"""All goals in one table: what ``make bench`` prints and writes to ``docs/performance.md``.

Each benchmark runs in a process of its own. A goal that is not met is no error; a benchmark that
breaks is one, and the others still run.

    python benchmarks/report.py [--quick] [--only load,memory] [--write docs/performance.md]

With ``--only`` the page's other rows stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from goals import Goal

HERE = Path(__file__).parent
#: The benchmarks that measure goals, in the order of the table.
MODULES = (
    "fold",
    "ingest",
    "durability",
    "postgres",
    "memory",
    "cores",
    "loop",
    "large_model",
    "load",
    "dask",
    "digits",
    "fedavg",
    "secagg",
    "privacy",
    "group_by",
    "members",
    "network",
    "demo",
    "dashboard",
    "start",
)
#: How long one may take, in seconds.
TIME_LIMIT = 1800
BEGIN, END = "<!-- goals: begin -->", "<!-- goals: end -->"
COLUMNS = ("group", "what", "measured", "limit", "")


@dataclass(frozen=True)
class Part:
    """What came of one benchmark.

    :param broken: why there are no goals; None if there are.
    :param seconds: how long it took.
    """

    module: str
    goals: Sequence[Goal]
    seconds: float
    broken: str | None = None


def measure(module: str, quick: bool) -> Part:
    """Run one benchmark in a process of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "goals.json"
        command = [sys.executable, __file__, "--module", module, "--json", str(file)]
        try:
            # What it prints is shown, apart from the table.
            ended = subprocess.run(
                [*command, *(["--quick"] if quick else [])],
                stdout=sys.stderr,
                timeout=TIME_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Part(module, (), TIME_LIMIT, f"it took more than {TIME_LIMIT} s")
        seconds = time.monotonic() - began
        if ended.returncode:
            return Part(module, (), seconds, f"it ended with status {ended.returncode}")
        goals = [Goal(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
    return Part(module, goals, seconds, None if goals else "it measured nothing")


def write_goals(module: str, quick: bool, file: Path) -> None:
    """Measure one benchmark's goals in this process and write them as JSON."""
    goals = importlib.import_module(f"bench_{module}").goals(quick)
    file.write_text(json.dumps([dataclasses.asdict(goal) for goal in goals]), encoding="utf-8")


def measured(parts: Sequence[Part]) -> list[Sequence[str]]:
    """Return the rows of what was measured, or broke."""
    rows: list[Sequence[str]] = []
    for part in parts:
        rows += [goal.row() for goal in part.goals]
        if part.broken is not None:
            rows.append((part.module, f"bench_{part.module}.py: {part.broken}", "", "", "broken"))
    return rows


def with_others(old: str, parts: Sequence[Part]) -> list[Sequence[str]]:
    """Return the rows of *parts*, in place of the same groups' in an earlier table."""
    new = measured(parts)
    lines = [line for line in old.splitlines() if line.startswith("| ")][1:]
    rows: list[Sequence[str]] = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    order = list(dict.fromkeys(row[0] for row in [*rows, *new]))
    anew = {row[0] for row in new} | {part.module for part in parts}
    return sorted(
        [*(row for row in rows if row[0] not in anew), *new], key=lambda row: order.index(row[0])
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown, which can be read as it is."""
    rows = [COLUMNS, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> str:
    """Say what it was measured on, in a sentence."""
    cpus, model = 0, platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE)
        cpus, model = len(models), models[0] if models else model
    memory = Path("/proc/meminfo")
    gigabytes = 0.0
    if memory.exists():
        found = re.search(r"^MemTotal:\s+(\d+) kB", memory.read_text(), re.MULTILINE)
        gigabytes = int(found[1]) / 2**20 if found else 0.0
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "tornado", "protobuf")
    )
    return (
        f"{model}, {cpus} cores, {gigabytes:.0f} GiB of memory, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, {versions}"
    )


def page(text: str, parts: Sequence[Part], quick: bool, some: bool = False) -> str:
    """Return the page with a new table between its marks.

    :param some: whether the other rows of its table stay, if it has any.
    :raises ValueError: if it has no marks.
    """
    before, mark, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the page needs {BEGIN} and {END}")
    day = datetime.now(timezone.utc).strftime("%d %B %Y").lstrip("0")
    kind = " (quick: smaller inputs)" if quick else ""
    minutes = sum(part.seconds for part in parts) / 60
    heading = f"Measured on {day}{kind} in {minutes:.0f} minutes: {machine()}."
    rows = measured(parts)
    if some and "| " in old:
        rows = with_others(old, parts)
        again = f"measured on {day}{kind}, {machine()}."
        heading = headings(old.partition("| ")[0].split("\n\n"), parts, again)
    return f"{before}{BEGIN}\n\n{heading}\n\n{table(rows)}\n\n{END}{after}"


def headings(old: Sequence[str], parts: Sequence[Part], again: str) -> str:
    """Return what says when which benchmarks ran: that of all, and then each where it ran last.

    :param again: when *parts* ran, and on what.
    """
    first, *others = (paragraph.strip() for paragraph in old if paragraph.strip())
    when: dict[str, str] = {}
    for paragraph in [*others, f"{', '.join(part.module for part in parts)}: {again}"]:
        names, _, ran = paragraph.partition(": ")
        when.update(dict.fromkeys(names.split(", "), ran))
    each = (
        ([name for name in when if when[name] == ran], ran) for ran in dict.fromkeys(when.values())
    )
    return "\n\n".join([first, *(f"{', '.join(names)}: {ran}" for names, ran in each)])


def main() -> None:
    """Measure, print, write; the status is 1 if a benchmark broke."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller inputs: minutes, not more")
    parser.add_argument("--only", help="some benchmarks, by name, divided by commas")
    parser.add_argument("--write", type=Path, help="the page that the table is put into")
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.module:
        write_goals(given.module, given.quick, given.json)
        return
    names = given.only.split(",") if given.only else MODULES
    unknown = sorted(set(names) - set(MODULES))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: {', '.join(MODULES)}")
    parts = []
    for name in names:
        print(f"== bench_{name}.py", file=sys.stderr, flush=True)
        parts.append(measure(name, given.quick))
    print(table(measured(parts)))
    if given.write is not None:
        text = given.write.read_text(encoding="utf-8")
        given.write.write_text(page(text, parts, given.quick, bool(given.only)), encoding="utf-8")
    sys.exit(any(part.broken is not None for part in parts))


if __name__ == "__main__":
    main()
