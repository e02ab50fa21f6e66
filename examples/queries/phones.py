"""Simulated phones: the tables that each of them has, in a SQLite file of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

APPS = ("messages", "browser", "camera", "maps", "music", "mail", "weather", "chess", "stars")
VERSIONS = ("2.0", "2.1", "3.0-beta")
COUNTRIES = ("AT", "CL", "JP", "KE", "NO")
COLUMNS = {
    "launches": ("app", "seconds"),
    "phone": ("memory_gb",),
    "sessions": ("version", "crashed"),
    "requests": ("country", "milliseconds"),
}


def rows(number: int) -> dict[str, Sequence[tuple[Any, ...]]]:
    """Return what happened on a phone, by table."""
    rng = np.random.default_rng(number)
    popularity = 1 / np.arange(1, len(APPS) + 1) ** 1.2
    apps = rng.choice(APPS, rng.poisson(12), p=popularity / popularity.sum())
    memory = int(rng.choice((2, 3, 6, 8)))
    version = str(rng.choice(VERSIONS, p=(0.3, 0.65, 0.05)))
    danger = {"2.0": 0.02, "2.1": 0.01, "3.0-beta": 0.1}[version] * (3 if memory < 4 else 1)
    country = str(rng.choice(COUNTRIES))
    slow = 40 * (1 + COUNTRIES.index(country))
    return {
        # A phone or two have an app that nobody else has.
        "launches": [
            *((str(app), round(float(rng.exponential(90)), 1)) for app in apps),
            *([("my-own-app", 5.0)] if number % 400 == 0 else []),
        ],
        "phone": [(memory,)],
        "sessions": [(version, int(rng.random() < danger)) for _ in range(rng.poisson(8))],
        "requests": [
            (country, round(float(rng.lognormal(np.log(slow), 0.7)), 2))
            for _ in range(rng.poisson(6))
        ],
    }


def make_phone(folder: Path, number: int) -> Path:
    """Write the database of a phone."""
    path = folder / f"phone-{number}.db"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database:
        # A simulation may lose its phones in a power cut.
        database.execute("PRAGMA synchronous = off")
        for table, added in rows(number).items():
            columns = COLUMNS[table]
            database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            marks = ", ".join("?" * len(columns))
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", added)
        database.commit()
    return path
