"""A client of the admin API, for programs and the command line. It blocks; threads may share it."""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from typing_extensions import Self

from fcp_core.admin.api import BINARY, CSV, JSON, MSGPACK, PREFIX
from fcp_core.admin.messages import (
    Cancellation,
    EligibilityList,
    EligibilitySettings,
    EligibilitySummary,
    Error,
    MemberList,
    PopulationList,
    ServerStatus,
    Submission,
    Task,
    TaskList,
    check_finite,
)
from fcp_core.admin.schedules import ScheduledTask, ScheduleList, ScheduleSummary
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError, code_from_http
from fcp_core.protocol.urls import split_address
from fcp_core.rounds.eligibility import EligibilityTask
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.tasks.schedule import Schedule

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a server that does not answer is asked again by default, in seconds.
PATIENCE = 60.0
_CONNECT_TIMEOUT = 10.0
_ANSWER_TIMEOUT = 60.0
#: How long one call waits for a task's end.
_WAIT = 30.0
#: From this size of plan and checkpoint on a submission is sent without base64, which takes a third
#: more of the server's memory, and for 190 MiB a quarter of a second in which it does nothing else.
_LARGE = 1 << 20
#: The pauses between tries grow from the first to the second, in seconds.
_PAUSES = (0.1, 5.0)
#: After how long without an answer it is said that we wait, in seconds.
_SILENT = 1.0


class AdminClient:
    """Submits, watches and ends the tasks of a server.

    A call whose answer does not come is repeated, until *patience* is over; that is safe, since a
    submission carries a key. After a second the log says so.

    :param url: where the server is, ``https://`` unless it is this machine.
    :param token: what it asks for; None: nothing is sent.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show.
    :param keyfile: its key, if that is not in *certfile*.
    :param patience: for how many seconds after its first failure a call is tried again.
    :raises UsageError: if the URL or a file does not do.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        try:
            parts = split_address(url)
        except ValueError as error:
            raise UsageError(
                f"the server's URL must be like https://fcp.example.org/, not {url!r}: {error}."
            ) from None
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme == "http" and not local:
            raise UsageError(
                f"{url}: over plain HTTP the token would be for all to read; use HTTPS."
            )
        files = [None if file is None else os.fspath(file) for file in (ca_file, certfile, keyfile)]
        for file in files:
            if file is not None and not os.path.isfile(file):
                raise UsageError(f"the certificate file {file} does not exist.")
        if files[1] is not None:
            try:
                ssl.create_default_context().load_cert_chain(files[1], files[2])
            except ssl.SSLError as error:
                raise UsageError(
                    f"the client certificate {files[1]} cannot be used: {error}."
                ) from None
        #: The server's address, with a slash at the end.
        self.url = url.rstrip("/") + "/"
        self._patience = patience
        self._closed = threading.Event()
        self._http = urllib3.PoolManager(
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            ca_certs=files[0],
            cert_file=files[1],
            key_file=files[2],
            maxsize=16,
            retries=False,
        )

    def submit(self, spec: TaskSpec, *, key: str | None = None) -> Task:
        """Offer a task.

        :param key: a task that was submitted with it before is returned instead.
        :raises StatusError: what the server answers; UNAVAILABLE if it cannot be reached.
        """
        submission = Submission.of(spec, key or uuid.uuid4().hex)
        if len(spec.plan) + len(spec.checkpoint) < _LARGE:
            return self._call("POST", "/tasks", Task, body=submission)
        try:
            return self._call("POST", "/tasks", Task, body=submission, kind=MSGPACK)
        except StatusError as error:
            # A server of the last release knows no other form.
            if error.code is not Code.INVALID_ARGUMENT or "JSON" not in error.message:
                raise
            return self._call("POST", "/tasks", Task, body=submission)

    def list(self, population: str | None = None, state: str | None = None) -> list[Task]:
        """Return all tasks, oldest first, or those of one population or state.

        :raises StatusError: as :meth:`submit`; so do all methods.
        """
        query = {"population": population, "state": state}
        return self._call("GET", "/tasks", TaskList, query=query).tasks

    def get(self, task_id: str) -> Task:
        """Return a task."""
        return self._call("GET", _path(task_id), Task)

    def wait(self, task_id: str, timeout: float | None = None) -> Task:
        """Return a task once it has ended, or after *timeout* seconds as it is then.

        :param timeout: None: wait as long as it takes.
        """
        left = math.inf if timeout is None else timeout
        while True:
            piece = min(left, _WAIT)
            task = self._wait(task_id, piece)
            left -= piece
            if task.is_final or left <= 0:
                return task

    def watch(self, task_id: str, interval: float = 1.0) -> Iterator[Task]:
        """Yield a task now, whenever it has changed, and when it has ended.

        :param interval: seconds between looks.
        """
        seen = self.get(task_id)
        yield seen
        while not seen.is_final:
            task = self._wait(task_id, interval)
            if task != seen:
                yield task
            seen = task

    def cancel(self, task_id: str, reason: str | None = None) -> Task:
        """End a task without a result."""
        body = Cancellation() if reason is None else Cancellation(reason)
        return self._call("POST", f"{_path(task_id)}:cancel", Task, body=body)

    def forget(self, task_id: str) -> None:
        """Delete a task that has ended, with its result; succeeds if it is gone already."""
        try:
            self._call("DELETE", _path(task_id), Task)
        except StatusError as error:
            if error.code is not Code.NOT_FOUND:
                raise

    def result(self, task_id: str) -> bytes:
        """Return the result's checkpoint."""
        return self._request("GET", f"{_path(task_id)}/result", accept=BINARY)

    def csv(self, task_id: str) -> str:
        """Return the result as CSV."""
        return self._request("GET", f"{_path(task_id)}/result", accept=CSV).decode()

    def populations(self) -> PopulationList:
        """Return the populations."""
        return self._call("GET", "/populations", PopulationList)

    def set_eligibility_task(self, population: str, task: EligibilityTask) -> EligibilitySummary:
        """Give a population an eligibility task, in place of the one it has."""
        body = EligibilitySettings.of(task)
        return self._call("PUT", _eligibility(population), EligibilitySummary, body=body)

    def eligibility_task(self, population: str) -> EligibilityTask:
        """Return a population's eligibility task."""
        return self._call("GET", _eligibility(population), EligibilitySettings).to_task()

    def eligibility_tasks(self) -> EligibilityList:
        """Return which populations have an eligibility task."""
        return self._call("GET", "/eligibility_tasks", EligibilityList)

    def remove_eligibility_task(self, population: str) -> None:
        """Remove a population's eligibility task; succeeds if it has none."""
        try:
            self._call("DELETE", _eligibility(population), EligibilitySummary)
        except StatusError as error:
            if error.code is not Code.NOT_FOUND:
                raise

    def schedule(self, spec: TaskSpec, schedule: Schedule) -> ScheduleSummary:
        """Have the server offer a task now, and then once in each period."""
        path = _schedule(spec.population, spec.name)
        return self._call("PUT", path, ScheduleSummary, body=ScheduledTask.of(spec, schedule))

    def schedules(self) -> ScheduleList:
        """Return the tasks that the server offers again and again."""
        return self._call("GET", "/schedules", ScheduleList)

    def unschedule(self, population: str, name: str) -> None:
        """Have a task offered no more."""
        self._call("DELETE", _schedule(population, name), ScheduleSummary)

    def members(self) -> MemberList:
        """Return the processes that share the storage, and who owns which population."""
        return self._call("GET", "/members", MemberList)

    def status(self) -> ServerStatus:
        """Return the status of the server."""
        return self._call("GET", "/status", ServerStatus)

    def page(self, path: str, verb: str = "GET") -> bytes:
        """Return a page that a plugin of the server answers (``fcp_register_pages``).

        :param path: below the server's address, such as ``dashboard/snapshot.json``.
        """
        return self._exchange(verb, self.url + path, None, {})

    def close(self) -> None:
        """Close connections; calls that wait end soon with CANCELLED. May be repeated."""
        self._closed.set()
        self._http.clear()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def _wait(self, task_id: str, timeout: float) -> Task:
        return self._call("GET", f"{_path(task_id)}:wait", Task, query={"timeout": timeout})

    def _call(
        self,
        verb: str,
        path: str,
        answer: type[T],
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        kind: str = JSON,
    ) -> T:
        data = self._request(verb, path, query=query, body=body, kind=kind)
        try:
            return msgspec.json.decode(data, type=answer)
        except msgspec.MsgspecError as error:
            raise StatusError(
                Code.INTERNAL, f"{self.url} answered what is no {answer.__name__}: {error}"
            ) from None

    def _request(
        self,
        verb: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        accept: str = JSON,
        kind: str = JSON,
    ) -> bytes:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = self.url.rstrip("/") + PREFIX + path + (f"?{urlencode(given)}" if given else "")
        check_finite(body)
        encode = msgspec.msgpack.encode if kind == MSGPACK else msgspec.json.encode
        data = None if body is None else encode(body)
        return self._exchange(verb, url, data, {"Accept": accept, "Content-Type": kind})

    def _exchange(self, verb: str, url: str, data: bytes | None, more: dict[str, str]) -> bytes:
        headers = {**self._http.headers, **more}
        began, pause, said = math.inf, _PAUSES[0], False
        while True:
            try:
                response = self._http.request(
                    verb,
                    url,
                    body=data,
                    headers=headers,
                    redirect=False,
                    timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=_ANSWER_TIMEOUT),
                )
            except urllib3.exceptions.SSLError as error:
                raise StatusError(
                    Code.UNAVAILABLE, f"{self.url}: {error}{_tls_hint(str(error))}"
                ) from None
            except urllib3.exceptions.HTTPError as error:
                broken = isinstance(error, urllib3.exceptions.ProtocolError)
                hint = "; does it speak https?" if broken and url.startswith("http:") else ""
                problem = StatusError(
                    Code.UNAVAILABLE, f"{self.url} cannot be reached: {_reason(error)}{hint}"
                )
            else:
                if response.status == 200:
                    return response.data
                problem = _error(response)
            # A server that is silent takes its time each time.
            now = time.monotonic()
            began = min(began, now)
            left = began + self._patience - now
            if problem.code is not Code.UNAVAILABLE or left <= 0:
                raise problem
            if not said and now - began >= _SILENT:
                said = True
                logger.warning("%s; asking again for %.0f s", problem.message, left)
            if self._closed.wait(pause):
                raise StatusError(Code.CANCELLED, "the client was closed")
            pause = min(2 * pause, _PAUSES[1])


def _tls_hint(problem: str) -> str:
    """Say what to do about a connection that TLS refused."""
    if "WRONG_VERS" in problem:
        return "; is it a server that speaks plain http?"
    if "self-signed" in problem or "unable to get local issuer" in problem:
        return "; if it has a certificate of your own, name that with ca_file (--ca-file)"
    return ""


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """Return what went wrong, without how urllib3 shows the connection and the exception."""
    inner = error.args[-1] if isinstance(error, urllib3.exceptions.ProtocolError) else error
    return re.sub(r"^HTTPS?Connection\(.*?\): ", "", str(inner))


def _path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _eligibility(population: str) -> str:
    return f"/eligibility_tasks/{quote(population, safe='')}"


def _schedule(population: str, name: str) -> str:
    return f"/schedules/{quote(population, safe='')}/{quote(name, safe='')}"


def _error(response: urllib3.BaseHTTPResponse) -> StatusError:
    """Return the error of a response; one that is not ours is described by its HTTP status."""
    try:
        return msgspec.json.decode(response.data, type=Error).to_error()
    except (msgspec.MsgspecError, ValueError):
        if response.headers.get("Content-Type", "").startswith("text/plain"):
            text = response.data.decode("utf-8", "replace").strip()
            return StatusError(code_from_http(response.status), text[:500])
        hint = ": is the admin API on, and the address right?" * (response.status == 404)
        return StatusError(
            code_from_http(response.status),
            f"the server answered with HTTP status {response.status}{hint}",
        )
