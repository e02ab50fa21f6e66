"""What each page shows: asks the snapshot, or the server, and fills a template."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from fcp_core.admin.messages import Submission, Task
from fcp_core.errors import UsageError
from fcp_core.plugins.pages import PageAnswer, PageRequest, Site
from fcp_core.protocol.status import Code, StatusError
from fcp_core.tasks.taskfile import parse_task
from fcp_dashboard import facts
from fcp_dashboard.access import Visitor
from fcp_dashboard.marks import quoted
from fcp_dashboard.render import HTML, LINKS, answer, page, redirect
from fcp_dashboard.report import report
from fcp_dashboard.snapshot import Snapshot, Snapshots
from fcp_dashboard.views import fleet, machine, results
from fcp_dashboard.views.overview import overview, page_of, tasks
from fcp_dashboard.views.tables import Plain
from fcp_dashboard.views.task import task_page

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("fcp_dashboard")

#: How many results are read for one page of a program, of what size at most in bytes, and of how
#: many tasks the single numbers are remembered.
_READ, _LARGE, _KNOWN = 10, 4 << 20, 2_000
#: The pages that show more than the newest open tasks.
_ALL = frozenset({"/tasks", "/programs", "/program", "/privacy", "/snapshot.json"})
_JSON = "application/json"
_BINARY = "application/octet-stream"

Query = Mapping[str, str]


class Content:
    """The pages of those who are let in.

    :param newest: snapshots that have only the tasks of the overview's first page.
    """

    def __init__(self, site: Site, snapshots: Snapshots, newest: Snapshots) -> None:
        self._site = site
        self._whole = snapshots
        self._newest = newest
        #: The single numbers of results, by the ids of their tasks: a result does not change.
        self._numbers: OrderedDict[str, dict[str, float]] = OrderedDict()
        #: The navigation; without a ledger there is nothing to say of privacy.
        ledgers = any(offer.kind == "ledger" for offer in site.offers())
        self._links = [link for link in LINKS if ledgers or link[0] != "privacy"]
        config = site.config
        self._snapped: dict[str, Callable[[Snapshot, Query], Plain]] = {
            "/populations": lambda snapshot, query: fleet.populations(snapshot, config),
            "/sessions": fleet.sessions,
            "/errors": lambda snapshot, query: fleet.errors(snapshot),
            "/events": fleet.events,
            "/privacy": lambda snapshot, query: fleet.privacy(snapshot),
            "/programs": results.programs,
        }
        self._asked: dict[str, Callable[[Snapshot, Query], Awaitable[Plain]]] = {
            "/program": self._program,
            "/members": self._members,
            "/server": self._server,
            "/configuration": self._configuration,
        }

    async def get(self, request: PageRequest, visitor: Visitor) -> PageAnswer:
        """Return a page.

        :raises StatusError: NOT_FOUND if there is no such page; what the server says.
        """
        path = request.path
        query = {name: given[0] for name, given in request.query.items()}
        if path.startswith("/tasks/"):
            return await self._of_task(request, visitor)
        if path == "/submit":
            return self._form(request, visitor, "", "")
        whole = path in _ALL or (path == "/" and page_of(query) > 1)
        snapshot = await (self._whole if whole else self._newest).get()
        if path == "/snapshot.json":
            return answer(request, facts.as_json(snapshot), _JSON)
        values: dict[str, Any]
        if path in ("/", "/tasks"):
            if path == "/":
                values = overview(snapshot, self._site.config, query)
            else:
                values = tasks(snapshot, query)
            return self._page(request, visitor, "overview.html", values, snapshot.problem)
        if path in self._snapped:
            plain = self._snapped[path](snapshot, query)
        elif path in self._asked:
            plain = await self._asked[path](snapshot, query)
        else:
            raise StatusError(Code.NOT_FOUND, "there is no such page")
        live = path != "/configuration"
        values = {**plain.values(), "live": live}
        return self._page(request, visitor, "page.html", values, snapshot.problem)

    def said(self, request: PageRequest, visitor: Visitor, error: StatusError) -> PageAnswer:
        """Return an error as a page.

        :raises StatusError: the error, for a program.
        """
        if request.admin or request.path.endswith((".json", ".csv", ".ckpt")):
            raise error
        title = "Not found" if error.code is Code.NOT_FOUND else "This did not work"
        values = {"title": title, "text": error.message, "live": False}
        return self._page(request, visitor, "message.html", values, status=error.http)

    async def submit(self, request: PageRequest, visitor: Visitor, text: str) -> PageAnswer:
        """Offer the task that a text describes, or say what is wrong with it."""
        try:
            spec = parse_task(text.replace("\r\n", "\n"), "the task").to_spec()
            task: Task = await self._site.admin.submit(Submission.of(spec))
        except (UsageError, StatusError) as error:
            message = error.message if isinstance(error, StatusError) else str(error)
            return self._form(request, visitor, text, message)
        logger.info("task %s was submitted from the dashboard", task.task_id)
        return redirect(f"tasks/{quote(task.task_id, safe='')}")

    def _form(self, request: PageRequest, visitor: Visitor, text: str, problem: str) -> PageAnswer:
        if "submit" not in visitor.actions:
            raise StatusError(Code.NOT_FOUND, "there is no such page for you")
        values = {"text": text, "wrong": problem, "live": False}
        status = 400 if problem else 200
        return self._page(request, visitor, "submit.html", values, status=status)

    def _page(
        self,
        request: PageRequest,
        visitor: Visitor,
        template: str,
        values: Mapping[str, Any],
        problem: str = "",
        status: int = 200,
    ) -> PageAnswer:
        shown = {"visitor": visitor, "problem": problem, "url": quoted, **values}
        return page(request, template, status=status, links=self._links, **shown)

    # Pages that ask the server.

    async def _members(self, snapshot: Snapshot, query: Query) -> Plain:
        return machine.members(await self._site.admin.members())

    async def _server(self, snapshot: Snapshot, query: Query) -> Plain:
        return machine.server(snapshot, await self._site.admin.status())

    async def _configuration(self, snapshot: Snapshot, query: Query) -> Plain:
        return machine.configuration(self._site)

    async def _program(self, snapshot: Snapshot, query: Query) -> Plain:
        rounds = results.rounds_of(snapshot, query.get("population", ""), query.get("name", ""))
        if not rounds:
            raise StatusError(Code.NOT_FOUND, "there is no task of that name")
        return results.program(snapshot, rounds, await self._numbers_of(rounds))

    async def _numbers_of(self, rounds: Sequence[Task]) -> dict[str, dict[str, float]]:
        """Return the single numbers of results; a few are read each time, the latest first."""
        left = _READ
        for task in reversed(rounds):
            if left and task.state == "completed" and task.task_id not in self._numbers:
                left -= 1
                data = await self._site.admin.checkpoint(task.task_id)
                small = len(data) <= _LARGE
                found = await asyncio.to_thread(results.scalars, data) if small else {}
                self._numbers[task.task_id] = found
        while len(self._numbers) > _KNOWN:
            self._numbers.popitem(last=False)
        return {t.task_id: self._numbers[t.task_id] for t in rounds if t.task_id in self._numbers}

    async def _of_task(self, request: PageRequest, visitor: Visitor) -> PageAnswer:
        _, _, name, *rest = request.path.split("/")
        task: Task = await self._site.admin.get_task(unquote(name))
        what = "/".join(rest)
        if what == "":
            snapshot = await self._newest.get()
            values = task_page(snapshot, task)
            return self._page(request, visitor, "task.html", values, snapshot.problem)
        if what == "report.html":
            return await self._report(request, task)
        if what in ("result", "result.csv", "result.ckpt"):
            return await self._result(request, visitor, task, what)
        raise StatusError(Code.NOT_FOUND, "there is no such page of a task")

    async def _result(
        self, request: PageRequest, visitor: Visitor, task: Task, what: str
    ) -> PageAnswer:
        admin = self._site.admin
        if what == "result.csv":
            text = await admin.csv(task.task_id)
            return _file(request, text.encode(), "text/csv; charset=utf-8", f"{task.task_id}.csv")
        data = await admin.checkpoint(task.task_id)
        if what == "result.ckpt":
            return _file(request, data, _BINARY, f"{task.task_id}.ckpt")
        plain = await asyncio.to_thread(results.result_page, task, data)
        return self._page(request, visitor, "page.html", {**plain.values(), "live": False})

    async def _report(self, request: PageRequest, task: Task) -> PageAnswer:
        snapshot = await self._newest.get()
        data = None
        if task.state == "completed":
            data = await self._site.admin.checkpoint(task.task_id)
        body = await asyncio.to_thread(report, snapshot, task, data)
        return _file(request, body, HTML, f"fcp-{task.task_id}.html")


def _file(request: PageRequest, body: bytes, kind: str, name: str) -> PageAnswer:
    """Return what a browser keeps as a file, and does not show as a page of ours."""
    disposition = f'attachment; filename="{quote(name)}"'
    return answer(request, body, kind, headers={"Content-Disposition": disposition})
