"""The admin service of a server with several members: any of them answers any call.

Calls about one task or population come to its owner by their path (``forward``). What is left is
here: a new task goes to the owner of its population, and lists are put together from all members'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
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
from fcp_core.server.http.member_calls import MemberConnections
from fcp_core.server.http.passing import HEADER, Passed, sign
from fcp_core.server.services.admin import Admin
from fcp_core.server.services.members import Members

T = TypeVar("T")
R = TypeVar("R")

#: How long another member may take to answer, in seconds.
ANSWER_TIME = 10.0
#: How long a list waits for populations that change hands, in seconds.
SETTLED_TIME = 5.0
#: The pause between two looks at who owns what.
_PAUSE = 0.05
#: How long one may take for a page, which somebody waits for, in seconds.
PAGE_TIME = 2.0


class OwnAdmin:
    """Has the interface of ``Admin``, for another member, which asks for what this one has.

    :param here: what answers.
    """

    def __init__(self, here: Admin, members: Members) -> None:
        self._here = here
        self._members = members

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        found: Callable[..., Awaitable[Any]] = getattr(self._here, method)
        if method != "status" and not method.startswith("list_"):
            return found

        async def answer(*arguments: Any) -> Any:
            await _settle(self._members, asyncio.get_running_loop().time() + SETTLED_TIME)
            return await found(*arguments)

        return answer


class SharedAdmin:
    """Has the interface of ``Admin``.

    :param here: what this server answers by itself.
    """

    def __init__(self, here: Admin, members: Members, connections: MemberConnections) -> None:
        self._here = here
        self._members = members
        self._connections = connections

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
        given = {
            name: value for name, value in msgspec.to_builtins(query).items() if value is not None
        }
        lists = await self._ask_all(
            f"/tasks?{urlencode(given)}", TaskList, partial(self._here.list_tasks, query)
        )
        each = [(url, found.tasks) for url, found in lists]
        tasks = self._together(each, lambda task: (task.population, task.task_id))
        tasks.sort(key=lambda task: task.created)
        total = sum(found.total or len(found.tasks) for _, found in lists)
        twice = sum(len(found) for _, found in each) - len(tasks)
        return TaskList(tasks[-(query.newest or 0) :], total - twice)

    async def list_populations(self) -> PopulationList:
        """Return all populations."""
        lists = await self._ask_all("/populations", PopulationList, self._here.list_populations)
        each = ((url, found.populations) for url, found in lists)
        return PopulationList(self._together(each, lambda one: (one.name,)))

    async def list_eligibility_tasks(self) -> EligibilityList:
        """Return which populations have one."""
        here = self._here.list_eligibility_tasks
        lists = await self._ask_all("/eligibility_tasks", EligibilityList, here)
        each = ((url, found.eligibility_tasks) for url, found in lists)
        return EligibilityList(self._together(each, lambda one: (one.population,)))

    async def list_schedules(self) -> ScheduleList:
        """Return the tasks that are offered again and again, by any member."""
        lists = await self._ask_all("/schedules", ScheduleList, self._here.list_schedules)
        each = ((url, found.schedules) for url, found in lists)
        return ScheduleList(self._together(each, lambda one: (one.population, one.name)))

    async def status(self) -> ServerStatus:
        """Return the version, the address and the number of tasks by state, of all members."""
        found = [
            each for _, each in await self._ask_all("/status", ServerStatus, self._here.status)
        ]
        states: Counter[str] = Counter()
        for each in found:
            states.update(each.tasks)
        return msgspec.structs.replace(found[0], tasks=dict(states))

    async def ask_pages(self, uri: str) -> list[bytes]:
        """Return a page of all other members that live; one that does not answer is left out."""
        found = await asyncio.gather(
            *(self._page(url, uri) for url in self._members.table.holders() if url)
        )
        return [body for body in found if body is not None]

    async def _page(self, url: str, uri: str) -> bytes | None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            status, body = await asyncio.wait_for(self._called(url, "GET", uri, b""), PAGE_TIME)
            if status == 200:
                return body
        return None

    def _together(
        self, lists: Iterable[tuple[str, Iterable[R]]], key: Callable[[R], tuple[str, ...]]
    ) -> list[R]:
        """Put the lists of members together, in the order of the keys.

        While a population changes hands two may know of a thing: its owner is right.

        :param lists: with where the member is called; ``""``: this server.
        :param key: says which a thing is, with its population first.
        """
        found: dict[tuple[str, ...], R] = {}
        for url, things in lists:
            for thing in things:
                which = key(thing)
                owner = self._members.table.owner(mark_of(which[0]), self._members.clock)
                if which not in found or (owner is not None and owner.url == url):
                    found[which] = thing
        return [found[which] for which in sorted(found)]

    async def _ask_all(
        self, path: str, kind: type[T], ask_here: Callable[[], Awaitable[T]]
    ) -> list[tuple[str, T]]:
        """Ask all other members that live; return each one's answer after this server's.

        :raises StatusError: UNAVAILABLE if one does not answer: half a list is no list.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + SETTLED_TIME
        while True:
            await _settle(self._members, end)
            table = self._members.table
            here, urls = await ask_here(), table.holders()
            others = await asyncio.gather(*(self._ask(url, "GET", path, kind) for url in urls))
            # What changed hands meanwhile may be in nobody's list.
            await _look(self._members, end)
            if loop.time() >= end or self._members.table.agrees(table):
                return [("", here), *zip(urls, others, strict=True)]

    async def _ask(self, url: str, method: str, path: str, kind: type[T], body: bytes = b"") -> T:
        try:
            status, data = await asyncio.wait_for(
                self._called(url, method, api.PREFIX + path, body), ANSWER_TIME
            )
        except (OSError, asyncio.TimeoutError):
            raise StatusError(
                Code.UNAVAILABLE, f"the member at {url} does not answer; ask again"
            ) from None
        if status != 200:
            error = msgspec.json.decode(data, type=Error)
            raise StatusError(Code[error.status], error.message, http=status)
        return msgspec.json.decode(data, type=kind)

    async def _called(self, url: str, method: str, uri: str, body: bytes) -> tuple[int, bytes]:
        call = await self._connections.open(url)
        passed = Passed.of_member(body)
        headers = HTTPHeaders(
            {
                "Host": "member",
                "Content-Length": str(len(body)),
                HEADER: sign(self._members.table.secrets, method, uri, passed),
            }
        )
        try:
            call.send(method, uri, headers, body)
            call.end_body()
            status, _ = await call.head
            return status, await call.body()
        except asyncio.CancelledError:
            call.close()  # it takes too long
            raise


async def _settle(members: Members, end: float) -> None:
    """Wait until somebody owns each population: nobody lists the tasks of one that is taken."""
    loop = asyncio.get_running_loop()
    while members.in_touch and not members.table.settled(members.clock) and loop.time() < end:
        await _look(members, end)
        await asyncio.sleep(_PAUSE)


async def _look(members: Members, end: float) -> None:
    """Have the storage asked who owns what, if it answers."""
    if members.in_touch:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(members.look(), end - asyncio.get_running_loop().time())
