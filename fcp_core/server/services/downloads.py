"""What devices download: the resources of all open tasks, by address, with a cache.

What is in memory is sent from there; what is read from the storage goes through the cache.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections import OrderedDict

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.published import PLAIN, Download, Published

#: How many digits of a group's name nobody can guess.
SECRET = 64
#: What only this server, or one with the same storage, can have given a device as an address.
_GROUP = re.compile(rf"[0-9a-f]{{{SECRET},}}")
#: How many bytes are kept of what was read from the storage.
CACHE = 64 << 20
#: What an entry of the cache counts beyond its data.
_ENTRY = 1024


class Downloads:
    """The resources of all open tasks.

    :param cache: how many bytes are kept of what was read from the storage; by default ``CACHE``.
    """

    def __init__(self, cache: int | None = None) -> None:
        #: By the end of the group's name: before it, another release had no mark.
        self._groups: dict[str, Published] = {}
        self._most = CACHE if cache is None else cache
        self._size = 0
        self._cache: OrderedDict[str, Download] = OrderedDict()
        #: Held by whoever makes a file ready, so that it is done once for all who want it at once.
        self._reading: weakref.WeakValueDictionary[str, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    def add(self, published: Published) -> None:
        """Publish a task's resources."""
        self._groups[published.group[-SECRET:]] = published

    def remove(self, group: str) -> None:
        """Remove a task's resources."""
        published = self._groups.pop(group[-SECRET:], None)
        if published is not None and published.source is not None:
            for name in [name for name in self._cache if self._published(name) is None]:
                self._forget(name)

    async def get(self, name: str) -> Download:
        """Return a resource.

        :param name: ``<group>/<file>``, or ``<group>.plain/<file>``.
        :raises StatusError: FAILED_PRECONDITION (410) if its task has ended, which to a device is
            no fault of its own; NOT_FOUND if there is none of that name.
        """
        group, _, file = name.partition("/")
        published = self._published(name)
        download = None
        if published is None and _GROUP.fullmatch(group.removesuffix(PLAIN)):
            raise StatusError(Code.FAILED_PRECONDITION, "its task has ended", http=410)
        if published is not None:
            compressed = not group.endswith(PLAIN)
            if published.source is not None and not published.holds(file):
                download = await self._read(published, name, file, compressed)
            elif compressed:
                download = await published.get(file, compressed=True)
            else:
                async with self._alone(name):
                    download = await published.get(file, compressed=False)
        if download is None:
            raise StatusError(Code.NOT_FOUND, "there is nothing here")
        return download

    def is_same(self, name: str, etag: str) -> bool:
        """Whether a resource is still there with that content, as far as is known unread."""
        published = self._published(name)
        facts = None if published is None else published.facts_of(name.partition("/")[2])
        return facts is not None and facts.etag == etag

    def _alone(self, name: str) -> asyncio.Lock:
        return self._reading.setdefault(name, asyncio.Lock())

    def _published(self, name: str) -> Published | None:
        return self._groups.get(name.partition("/")[0].removesuffix(PLAIN)[-SECRET:])

    async def _read(
        self, published: Published, name: str, file: str, compressed: bool
    ) -> Download | None:
        async with self._alone(name):
            known = self._cache.get(name)
            if known is not None:
                self._cache.move_to_end(name)
                return known
            download = await published.get(file, compressed=compressed)
            # A task may end meanwhile.
            if download is not None and self._published(name) is published:
                self._keep(name, download)
            return download

    def _keep(self, name: str, download: Download) -> None:
        size = len(download.data) + _ENTRY
        if size <= self._most:
            self._cache[name] = download
            self._size += size
        while self._size > self._most:
            self._forget(next(iter(self._cache)))

    def _forget(self, name: str) -> None:
        self._size -= len(self._cache.pop(name).data) + _ENTRY
