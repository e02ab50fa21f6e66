"""The byte streams: contributions come in, plans and checkpoints go out."""

from __future__ import annotations

from fcp_core.aggregation.engine import HeldBody
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.protocols import Body
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.protocol_calls import ProtocolCalls
from fcp_core.server.services.published import Download
from fcp_core.server.services.task_engine import UploadMemory


class Media:
    """Uploads and downloads."""

    def __init__(
        self, clock: Clock, calls: ProtocolCalls, downloads: Downloads, memory: UploadMemory
    ) -> None:
        self._clock = clock
        self._calls = calls
        self._downloads = downloads
        self._memory = memory

    @property
    def held(self) -> int:
        """How many bytes of uploads wait to be accumulated."""
        return self._memory.held

    async def begin_upload(self, resource_name: str, sender: str | None = None) -> bool:
        """Begin an upload; :meth:`finish_upload` or :meth:`abandon_upload` must follow.

        :returns: whether its bytes are wanted: they are not if they are there already and the
            device only did not hear so, or if it comes too late; it is to be answered OK then.
        :raises StatusError: UNAUTHENTICATED for a name that is not valid, PERMISSION_DENIED for one
            of somebody else, ABORTED if the assignment was dropped.
        """
        now = self._clock.now()
        found = self._calls.upload(resource_name, now, sender)
        if found is None:
            return False
        task, assignment, slot = found
        return task.begin_upload(assignment, slot, now)

    async def finish_upload(
        self, resource_name: str, body: Body, sender: str | None = None
    ) -> None:
        """Take the whole body, decompressed.

        :raises StatusError: as :meth:`begin_upload`; UNAVAILABLE if too much is held already, and
            then the device may try again.
        """
        now = self._clock.now()
        found = self._calls.upload(resource_name, now, sender)
        if found is None:
            if isinstance(body, HeldBody):
                body.drop()
            return
        task, assignment, slot = found
        try:
            self._memory.check(len(body))
        except StatusError:
            assignment.abandon_upload(slot)
            raise
        if task.protocol.reads and isinstance(body, HeldBody):
            body = await body.fetch()
        task.finish_upload(assignment, slot, body, now)

    async def abandon_upload(self, resource_name: str, sender: str | None = None) -> None:
        """Forget an upload whose bytes will not come; the device may try again."""
        try:
            found = self._calls.upload(resource_name, self._clock.now(), sender)
        except StatusError:
            return
        if found is None:
            return
        _, assignment, slot = found
        assignment.abandon_upload(slot)

    async def download(self, name: str) -> Download:
        """Return a resource.

        :param name: what follows ``/data/`` in its address.
        :raises StatusError: NOT_FOUND if there is none, or its task has ended.
        """
        return await self._downloads.get(name)

    def is_same(self, name: str, etag: str) -> bool:
        """Whether a resource is still there with that content, as far as is known unread."""
        return self._downloads.is_same(name, etag)
