"""How a task's end is stored, whatever its result and its storage come to."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.events import Released
from fcp_core.rounds.ledger import ReleaseRefusedError
from fcp_core.rounds.tasks import TaskState, TaskStatus
from fcp_core.server.services.releases import TaskRelease
from fcp_core.server.services.store import Ended, TaskStore, ended_record, status_of
from fcp_core.server.services.task_parts import Surroundings
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import TaskRecord

logger = logging.getLogger("fcp.services")


async def store_end(
    store: TaskStore,
    record: TaskRecord,
    status: TaskStatus,
    result: bytes | None,
    release: TaskRelease,
    surroundings: Surroundings,
    storage: str,
) -> tuple[TaskStatus, Ended]:
    """Store how a task ended, however long that takes; return how it ended.

    A result that may not be released, or that the storage does not take, is dropped, and the task
    has failed.

    :param record: of the open task.
    :param status: how its machine says that it ended.
    :param storage: its name, for the operator.
    :raises LeaseLostError: if another member ends it.
    """
    try:
        booking = None if result is None else release.booking()
        ended = await store.end(ended_record(record, status), result, booking)
        if booking is not None and ended.accounts:
            figures = await asyncio.to_thread(release.booked, ended.accounts)
            who = (status.population, status.task_id, status.name)
            surroundings.notify(Released(surroundings.clock.now(), *who, figures))
    except LeaseLostError:
        raise
    except StatusError as error:
        failed = (error.code, error.message)
        if not (isinstance(error, ReleaseRefusedError) or error.code is Code.FAILED_PRECONDITION):
            logger.exception("the end of task %s cannot be stored as it is", status.name)
            why = f"the storage {storage} does not take the end of task {status.name}: {error}"
            failed = (Code.INTERNAL, why)
        status = dataclasses.replace(status, state=TaskState.FAILED, error=failed)
        ended = await store.end(ended_record(record, status), None)
    stored = status_of(ended.record)
    return dataclasses.replace(
        status, state=stored.state, error=stored.error, release=stored.release
    ), ended
