"""Answers an SQL query over simulated devices, without a server: plan, aggregation, table."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np

from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.fold import fold, merge_partials, report_partial
from fcp_core.client import CollectionStore, PlanRun, SliceSource
from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.executors import run_plan
from fcp_core.client.interruption import Interruption
from fcp_core.client.sql_store import SQLStore
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.summed_groups import MODULUS


def make_database(path, tables):
    """Write tables, by name each its columns and its rows, to a SQLite file."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = off")
        fill(database, tables)
        database.commit()
    return path


def fill(database, tables):
    """Make tables in an open database; rows are added to those that are there."""
    for name, (columns, rows) in tables.items():
        database.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)


def contributions(query, stores, **fields):
    """Return the specification of a query, and what devices with these stores send."""
    task = {"population": "people", "name": "question", "goal_count": len(stores), **fields}
    spec = query.to_spec(**task)
    plan = plan_pb2.ClientOnlyPlan.FromString(spec.plan)
    executors = default_executors()
    sent = []
    for store in stores:
        run = PlanRun(
            plan,
            b"",
            CollectionStore({query.collection: store}),
            SliceSource(None, ""),
            Interruption(),
        )
        sent.append(run_plan(executors, run))
    return spec, sent


def answer(query, stores):
    """Return the table that a query gives over devices."""
    spec, sent = contributions(query, stores)
    job = FoldJob(spec.aggregation, {}, {}, 1 << 30, spec.goal_count)
    factories = Plugins.load().aggregators
    named = [(str(number), blob) for number, blob in enumerate(sent)]
    partials = []
    for half in (named[::2], named[1::2]):
        partial, refused = fold(factories, job, half)
        assert not refused, refused
        partials.append(partial)
    whole = merge_partials(factories, job, partials)
    return query.table(report_partial(factories, job, whole, spec.result_format))


def masked_answer(query, stores):
    """Return the table that the sums over all devices give; the sums are all that is seen."""
    spec, sent = contributions(query, stores)
    total = {}
    for intrinsic in parse_configuration(spec.aggregation):
        assert intrinsic.uri == "federated_secure_modular_sum"
        name = intrinsic.inputs[0].name
        tables = [open_checkpoint(blob).get_tensor(name).astype(object) for blob in sent]
        assert all(0 <= table.min() <= table.max() < MODULUS for table in tables)
        total[name] = (sum(tables) % MODULUS).astype(np.int64)
    return query.table(write_checkpoint(total, "federated_compute"))


def rows_of(table):
    """Return a table's rows."""
    return list(table.rows())


def oracle(sql, devices):
    """Return what SQLite answers over the tables of all devices in one."""
    with closing(sqlite3.connect(":memory:")) as database:
        for tables in devices:
            fill(database, tables)
        return database.execute(sql).fetchall()


def stores_of(folder, devices):
    """Return a store for each device."""
    return [
        SQLStore(make_database(folder / f"device{number}.db", tables))
        for number, tables in enumerate(devices)
    ]
