"""Where a program's rounds run: on a server in this process, or on one elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import tensorflow as tf

from fcp_core.admin import AdminClient
from fcp_core.admin.messages import Submission, Task
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.eligibility import EligibilityTask
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread

T = TypeVar("T")

logger = logging.getLogger("fcp.platform")

#: How long one call waits for a round's end, in seconds; a program that ends waits for the call.
_POLL = 2.0
#: How long a server that cannot be reached is tried before a round fails, in seconds.
_PATIENCE = 300.0
#: How long a program that ends waits until its rounds are cancelled, in seconds.
_CANCEL_TIME = 10.0
#: How many rounds of a program wait at a time, at most.
_THREADS = 32


class TaskRunner(ABC):
    """Offers tasks and waits for their results, between :meth:`start` and :meth:`stop`."""

    #: Where devices, or programs, reach the server.
    url: str
    #: The port of that.
    port: int

    @abstractmethod
    def start(self) -> None:
        """Be ready for tasks.

        :raises UsageError: if that cannot be.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let go. May be repeated."""

    @abstractmethod
    async def run(self, spec: TaskSpec) -> bytes:
        """Offer a task; return its result, a checkpoint.

        :raises StatusError: why there is none.
        """

    @abstractmethod
    def set_eligibility_task(self, population: str, task: EligibilityTask | None) -> None:
        """Give a population an eligibility task, in place of the one it has; None: none any more.

        :raises StatusError: if the server does not take it, or cannot be reached.
        """


class LocalRunner(TaskRunner):
    """Runs tasks on a server of this process; they end with it."""

    def __init__(self, server: Server) -> None:
        self._thread = ServerThread(server)
        #: What was set before the start, by population.
        self._early: dict[str, EligibilityTask | None] | None = {}
        self.url = server.url
        self.port = server.port

    def start(self) -> None:
        """Serve."""
        self._thread.start()
        early, self._early = self._early or {}, None
        for population, task in early.items():
            self.set_eligibility_task(population, task)

    def stop(self) -> None:
        """Stop serving; tasks that go on fail."""
        self._thread.stop()

    async def run(self, spec: TaskSpec) -> bytes:
        """Offer a task and wait; one that nobody waits for any more is cancelled."""
        return await asyncio.wrap_future(self._thread.run(self._run(spec)))

    def set_eligibility_task(self, population: str, task: EligibilityTask | None) -> None:
        """Tell the server, as soon as it runs; the next device that checks in goes by it."""
        if self._early is None:
            self._thread.run(self._set(population, task)).result()
        else:
            self._early[population] = task

    async def _set(self, population: str, task: EligibilityTask | None) -> None:
        """Do so on the server's event loop."""
        tasks = self._thread.server.services.eligibility_tasks
        if task is not None:
            await tasks.set(population, task)
        elif tasks.has(population):
            await tasks.remove(population)

    async def _run(self, spec: TaskSpec) -> bytes:
        """Do so on the server's event loop."""
        tasks = self._thread.server.services.tasks
        # Shielded: a submission that is cut off half-way would leave a task that nobody knows of.
        offered = asyncio.ensure_future(tasks.submit(spec))
        try:
            result: bytes = await tasks.wait(await asyncio.shield(offered))
        except asyncio.CancelledError:
            with contextlib.suppress(StatusError):
                await tasks.cancel(await offered, "the program does not wait for it any more")
            raise
        await tasks.forget(offered.result())
        return result


class RemoteRunner(TaskRunner):
    """Runs tasks on a server elsewhere, through its admin API.

    :param url: the server's address.
    :param token: its admin token; None: the certificate does.
    :param ca_file: PEM certificates to trust instead of the system's.
    :param certfile: a PEM certificate to show.
    :param keyfile: its key, if that is not in *certfile*.
    :param program: what the program is called. A program that has a name and is started again finds
        the tasks that it left behind, by that name and what is in them: they are left alone when it
        ends. Without a name they are cancelled.
    :raises UsageError: if the address or the file does not do.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        ca_file: Any = None,
        certfile: Any = None,
        keyfile: Any = None,
        program: str | None = None,
    ) -> None:
        self._client = AdminClient(
            url,
            token,
            ca_file=ca_file,
            certfile=certfile,
            keyfile=keyfile,
            patience=_PATIENCE,
        )
        self._program = program
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fcp-rounds")
        #: The keys of the tasks that this program waits for.
        self._waiting: set[str] = set()
        self._cancelling: list[Future[None]] = []
        self.url = self._client.url
        parts = urlsplit(self.url)
        self.port = parts.port or (443 if parts.scheme == "https" else 80)

    def start(self) -> None:
        """See whether the server is there and takes the token."""
        try:
            self._client.status()
        except StatusError as error:
            raise UsageError(f"the server {self.url} cannot be used: {error.message}.") from error

    def stop(self) -> None:
        """Close connections, once what was cancelled is cancelled there too."""
        wait(self._cancelling, _CANCEL_TIME)
        self._client.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def set_eligibility_task(self, population: str, task: EligibilityTask | None) -> None:
        """Tell the server; it keeps the task when the program ends."""
        if task is None:
            self._client.remove_eligibility_task(population)
        else:
            self._client.set_eligibility_task(population, task)

    async def run(self, spec: TaskSpec) -> bytes:
        """Offer a task, or find it again, and wait."""
        key = None if self._program is None else await asyncio.to_thread(self._key, spec)
        if key is not None:
            self._waiting.add(key)
        try:
            return await self._run(spec, key)
        finally:
            self._waiting.discard(key or "")

    async def _run(self, spec: TaskSpec, key: str | None) -> bytes:
        offered = self._threads.submit(self._offer, spec, key)
        try:
            task = await asyncio.wrap_future(offered)
            while not task.is_final:
                task = await self._call(self._client.wait, task.task_id, _POLL)
        except asyncio.CancelledError:
            if self._program is None:
                # Apart from the event loop, which may be about to close.
                self._cancelling.append(self._threads.submit(self._cancel, offered))
            raise
        task.check()
        result = await self._call(self._client.result, task.task_id)
        await self._call(self._client.forget, task.task_id)
        return result

    def _offer(self, spec: TaskSpec, key: str | None) -> Task:
        task = self._client.submit(spec, key=key)
        if task.error is not None:
            # It failed while the program was away, or before the program tried again.
            self._client.forget(task.task_id)
            task = self._client.submit(spec, key=key)
        return task

    def _cancel(self, offered: Future[Task]) -> None:
        """Cancel a task, which may be on its way to the server still."""
        try:
            task_id = offered.result().task_id
        except (CancelledError, StatusError):
            return  # it never got there
        try:
            self._client.cancel(task_id, "the program does not wait for it any more")
        except StatusError as error:
            logger.warning("task %s could not be cancelled: %s", task_id, error.message)

    def _key(self, spec: TaskSpec) -> str:
        """Return the key of a task: the same for the same task of the same program.

        Tasks that are alike and wait at the same time are numbered.
        """
        small = Submission.of(spec.replace(plan=b"", slices={}))
        digest = hashlib.sha256(msgspec.msgpack.encode(small, order="sorted"))
        # Their keys are numbers, which the encoder does not sort.
        for served_at_id, slices in sorted(spec.slices.items()):
            digest.update(msgspec.msgpack.encode((served_at_id, sorted(slices.items()))))
        digest.update(_plan_text(spec.plan).encode())
        number = 0
        while (key := f"{self._program}/{digest.hexdigest()[:32]}/{number}") in self._waiting:
            number += 1
        return key

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))


def _plan_text(data: bytes) -> str:
    """Return a plan as text that is the same whenever the program makes the plan.

    TensorFlow numbers functions in the order in which a process happens to trace them. A TFLite
    model has those numbers too, and is made of the graph alone.
    """
    plan = plan_pb2.ClientOnlyPlan.FromString(data)
    graph = str(tf.compat.v1.GraphDef.FromString(plan.graph))
    plan.ClearField("graph")
    plan.ClearField("tflite_graph")
    return re.sub(r'(__\w+?)_\d+(?=")', r"\1", graph) + str(plan)
