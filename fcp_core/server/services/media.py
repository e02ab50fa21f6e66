"""The byte streams: contributions come in, plans and checkpoints go out."""

from __future__ import annotations

from operator import attrgetter

from fcp_core.rounds.assignment import UploadMemory
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.protocol_calls import ProtocolCalls
from fcp_core.server.services.published import Download


class Media:
    """Uploads, which are calls of aggregation protocols too, and downloads."""

    #: How many bytes of uploads wait to be accumulated.
    held = property(attrgetter("_memory.held"))
    #: How many bytes of large ones are accumulated and not stored yet.
    storing = property(attrgetter("_memory.storing"))

    def __init__(self, calls: ProtocolCalls, downloads: Downloads, memory: UploadMemory) -> None:
        self.begin_upload = calls.begin_upload
        self.finish_upload = calls.finish_upload
        self.abandon_upload = calls.abandon_upload
        self._downloads = downloads
        self._memory = memory
        #: Announced whenever they have become fewer.
        self.freed = memory.freed

    def behind(self, behind: bool) -> None:
        """Note whether more uploads wait to be received, in a process, than it may hold at a time.

        :param behind: the other of what it was, or True the first time.
        """
        self._memory.behind(1 if behind else -1)

    async def download(self, name: str) -> Download:
        """Return a resource.

        :param name: what follows ``/data/`` in its address.
        :raises StatusError: NOT_FOUND if there is none, or its task has ended.
        """
        return await self._downloads.get(name)

    def is_same(self, name: str, etag: str) -> bool:
        """Whether a resource is still there with that content, as far as is known unread."""
        return self._downloads.is_same(name, etag)
