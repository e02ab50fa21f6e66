"""The admin service of a server with several members: any of them answers any call.

Calls about one task or population come to its owner by their path (``forward``). What is left is
here: a new task goes to the owner of its population, and lists are put together from all members'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from tornado.httputil import HTTPHeaders

from fcp_core.admin import api
from fcp_core.admin.messages import (
    EligibilityList,
    Error,
    ListQuery,
    PopulationList,
    ServerStatus,
    Submission,
    Task,
    TaskList,
)
from fcp_core.admin.schedules import ScheduleList
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.http.passing import HEADER, Passed, sign
from fcp_core.server.http.peers import Peers
from fcp_core.server.services.admin import Admin
from fcp_core.server.services.members import Members

T = TypeVar("T")

#: How long another member may take to answer, in seconds.
ANSWER_TIME = 10.0
#: How long one may take for a page, which somebody waits for, in seconds.
PAGE_TIME = 2.0


class SharedAdmin:
    """Has the interface of ``Admin``.

    :param here: what this server answers by itself.
    """

    def __init__(self, here: Admin, members: Members, peers: Peers) -> None:
        self._here = here
        self._members = members
        self._peers = peers

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Return a method that this server answers by itself."""
        found: Callable[..., Awaitable[Any]] = getattr(self._here, method)
        return found

    async def submit(self, submission: Submission) -> Task:
        """Offer a task, at the owner of its population.

        :raises StatusError: as ``Admin.submit``.
        """
        mark = mark_of(submission.population)
        owner = self._members.table.owner(mark, self._members.clock)
        if owner is None:
            await self._members.look()
            owner = self._members.table.owner(mark, self._members.clock)
        url = owner.url if owner is not None else self._members.table.chosen(submission.population)
        if not url:
            return await self._here.submit(submission)
        return await self._ask(url, "POST", "/tasks", Task, msgspec.json.encode(submission))

    async def list_tasks(self, query: ListQuery) -> TaskList:
        """Return all tasks, or those of one population or state, or the newest of them."""
        found = await self._here.list_tasks(query)
        given = {
            name: value for name, value in msgspec.to_builtins(query).items() if value is not None
        }
        others = await self._ask_all(f"/tasks?{urlencode(given)}", TaskList)
        tasks = [task for each in (found, *others) for task in each.tasks]
        tasks.sort(key=lambda task: task.created)
        total = sum(each.total or len(each.tasks) for each in (found, *others))
        return TaskList(tasks[-(query.newest or 0) :], total)

    async def list_populations(self) -> PopulationList:
        """Return all populations."""
        found = await self._here.list_populations()
        others = await self._ask_all("/populations", PopulationList)
        populations = [one for each in (found, *others) for one in each.populations]
        return PopulationList(sorted(populations, key=lambda one: one.name))

    async def list_eligibility_tasks(self) -> EligibilityList:
        """Return which populations have one."""
        found = await self._here.list_eligibility_tasks()
        others = await self._ask_all("/eligibility_tasks", EligibilityList)
        tasks = [one for each in (found, *others) for one in each.eligibility_tasks]
        return EligibilityList(sorted(tasks, key=lambda one: one.population))

    async def list_schedules(self) -> ScheduleList:
        """Return the tasks that are offered again and again, by any member."""
        found = await self._here.list_schedules()
        others = await self._ask_all("/schedules", ScheduleList)
        schedules = [one for each in (found, *others) for one in each.schedules]
        return ScheduleList(sorted(schedules, key=lambda one: (one.population, one.name)))

    async def status(self) -> ServerStatus:
        """Return the version, the address and the number of tasks by state, of all members."""
        found = await self._here.status()
        others = await self._ask_all("/status", ServerStatus)
        states = Counter(found.tasks)
        for other in others:
            states.update(other.tasks)
        return msgspec.structs.replace(found, tasks=dict(states))

    async def ask_pages(self, uri: str) -> list[bytes]:
        """Return a page of all other members that live; one that does not answer is left out."""
        found = await asyncio.gather(
            *(self._page(url, uri) for url in self._members.table.holders() if url)
        )
        return [body for body in found if body is not None]

    async def _page(self, url: str, uri: str) -> bytes | None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            status, body = await asyncio.wait_for(self._exchange(url, "GET", uri, b""), PAGE_TIME)
            if status == 200:
                return body
        return None

    async def _ask_all(self, path: str, kind: type[T]) -> list[T]:
        """Ask all other members that live.

        :raises StatusError: UNAVAILABLE if one does not answer: half a list is no list.
        """
        asked = (self._ask(url, "GET", path, kind) for url in self._members.table.holders())
        return list(await asyncio.gather(*asked))

    async def _ask(self, url: str, method: str, path: str, kind: type[T], body: bytes = b"") -> T:
        try:
            status, data = await asyncio.wait_for(
                self._exchange(url, method, api.PREFIX + path, body), ANSWER_TIME
            )
        except (OSError, asyncio.TimeoutError):
            raise StatusError(
                Code.UNAVAILABLE, f"the member at {url} does not answer; ask again"
            ) from None
        if status != 200:
            error = msgspec.json.decode(data, type=Error)
            raise StatusError(Code[error.status], error.message, http=status)
        return msgspec.json.decode(data, type=kind)

    async def _exchange(self, url: str, method: str, uri: str, body: bytes) -> tuple[int, bytes]:
        exchange = await self._peers.open(url)
        passed = Passed.of_member(body)
        headers = HTTPHeaders(
            {
                "Host": "member",
                "Content-Length": str(len(body)),
                HEADER: sign(self._members.table.secrets, method, uri, passed),
            }
        )
        exchange.send(method, uri, headers, body)
        exchange.end_body()
        status, _ = await exchange.head
        return status, await exchange.body()
