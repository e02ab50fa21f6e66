"""Members of one server in this process, on an SQLite file that they are made to share."""

from __future__ import annotations

import asyncio
import itertools
import time

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Outcome
from fcp_core.plugins import hookimpl
from fcp_core.rounds.membership import preferred
from fcp_core.storage.contract import StorageError, StorageFactory
from fcp_core.testing.servers import query_task
from fcp_plugins.storage_sqlite import SqliteStorage

#: How long anything may take before a test fails, in seconds.
WAIT = 180.0


class SharedSqlite(SqliteStorage):
    """Members take turns on one file, as they do in a database: quick to make.

    :ivar fault: what happens instead of a transaction: ``"error"``, or ``"silence"``.
    """

    shared = True
    fault = ""

    async def transact(self, body):
        """Run a transaction, unless there is a fault."""
        while self.fault:
            if self.fault == "error":
                raise StorageError("the test has it fail")
            await asyncio.sleep(0.02)
        return await super().transact(body)


class SharedStorage:
    """The plugin that offers it."""

    def __init__(self, path):
        self._path = path
        self.made = []

    @hookimpl
    def fcp_register_storages(self):
        def make(options):
            self.made.append(SharedSqlite(self._path))
            return self.made[-1]

        return [StorageFactory("shared", "an SQLite file that members share", make)]


def until(condition, *, limit=WAIT):
    """Wait for a condition; return what it returns."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"{condition} did not come true"
        time.sleep(0.02)
    return found


def sum_task(goal, population="people", size=1, **fields):
    """Make a task whose devices contribute an int64 each."""
    intrinsic = Intrinsic(
        "federated_sum",
        (TensorSpec("v", DataType.INT64, (size,)),),
        (TensorSpec("total", DataType.INT64, (size,)),),
    )
    return query_task(intrinsic, population=population, goal_count=goal, **fields)


def spread(member_ids, each):
    """Return names of populations of which each of some members is to own the same number."""
    found = {member_id: [] for member_id in member_ids}
    for number in itertools.count():
        mine = found[preferred(f"p{number}", member_ids)]
        if len(mine) < each:
            mine.append(f"p{number}")
        if all(len(names) == each for names in found.values()):
            return sorted(itertools.chain(*found.values()))


def owned(server):
    """Return the populations that a member acts for."""
    return server.server.services.members.owned


def admin(server):
    return AdminClient(server.url, "a-secret-of-members")


def contribute(device):
    """Contribute, on a machine that may be so busy that a lease runs out meanwhile."""
    until(lambda: device.run_once().outcome is Outcome.CONTRIBUTED)


def other_population(one, two):
    """Return a population that the second member is to own."""
    table = one_table(one)
    return next(name for name in map("p{}".format, itertools.count()) if table.chosen(name))


def write(server, *records):
    """Write records into the storage that a member uses."""

    async def work():
        def body(tx):
            for record in records:
                tx.put(record(tx.now()) if callable(record) else record)

        await server.server.services._storage.transact(body)

    server._run(work())


def one_table(server):
    """Return the table of a member that knows of another one."""
    members = server.server.services.members
    until(lambda: members.table.members)
    return members.table
