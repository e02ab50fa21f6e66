"""A run with a task of its own: offered before the devices come, its result checked afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fcp_core.bench.load import drive
from fcp_core.bench.report import Report, TaskEnd
from fcp_core.bench.server import OwnServer, quantile_ms
from fcp_core.bench.settings import Load
from fcp_core.bench.task import BenchTask

if TYPE_CHECKING:
    from fcp_core.admin.client import AdminClient

#: The name of a run's own task.
TASK = "bench/load"
#: How long a round may take from its last contribution to its result, in seconds.
_CLOSING_TIME = 60.0
#: What the outcome of a session begins with that may have contributed, for all that is known.
_UNCERTAIN = ("submit", "connection", "not finished")


def run(
    client: AdminClient,
    load: Load,
    task: BenchTask,
    goal: int | None = None,
    server: OwnServer | None = None,
) -> Report:
    """Offer a task, let devices contribute to it, check its result, and take it away.

    :param client: of the server that is put under load.
    :param load: its ``bodies`` and its ``task`` are replaced by the generated ones.
    :param goal: how many contributions end the round; None: as many as there are devices.
    :param server: measure what it costs this one, which the client is of; None: that is not known.
    :raises StatusError: if the server refuses the task.
    :raises UsageError: as :func:`drive` does.
    """
    goal = load.clients if goal is None else goal
    load = dataclasses.replace(load, bodies=task.bodies(load.gzip), task=TASK)
    load.check()
    deadline = load.time_limit + _CLOSING_TIME
    offered = client.submit(task.spec(load.population, TASK, goal, deadline))
    try:
        if server is not None:
            lags, before = server.lags(), server.usage()
        report = asyncio.run(drive(client.url, load))
        full = report.contributed >= goal
        ended = client.wait(offered.task_id, _CLOSING_TIME if full else 0.0)
        cost = None
        if server is not None:
            after = server.usage()
            late = {bound: n - lags.get(bound, 0) for bound, n in server.lags().items()}
            cost = after.cost_since(before, load.clients, quantile_ms(late, 0.99))
        exact = None
        if ended.state == "completed" and not _uncertain(report):
            exact = task.is_result(client.result(offered.task_id), report.by_body)
        end = TaskEnd(ended.state, ended.contributed, goal, exact)
        return report.with_server(cost, end)
    finally:
        client.cancel(offered.task_id, "the run is over")
        client.wait(offered.task_id, _CLOSING_TIME)
        client.forget(offered.task_id)


def _uncertain(report: Report) -> Sequence[str]:
    return [outcome for outcome in report.outcomes if outcome.startswith(_UNCERTAIN)]
