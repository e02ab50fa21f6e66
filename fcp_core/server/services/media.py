"""The byte streams: contributions come in, plans and checkpoints go out."""

from __future__ import annotations

import functools

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.contributions import Body, ContributionBook
from fcp_core.server.services.downloads import Download, Downloads


class Media:
    """Uploads and downloads.

    :param max_held: how many bytes of uploads are held until they are in the aggregate, or refused.
    :ivar held: how many are at the moment.
    """

    def __init__(
        self, clock: Clock, book: ContributionBook, downloads: Downloads, max_held: int
    ) -> None:
        self._clock = clock
        self._book = book
        self._downloads = downloads
        self._max_held = max_held
        self.held = 0

    async def begin_upload(self, resource_name: str) -> None:
        """Let an upload begin; :meth:`finish_upload` or :meth:`abandon_upload` must follow.

        :raises StatusError: UNAUTHENTICATED for a name that is unknown or was used, ABORTED if the
            round is over.
        """
        self._book.find(resource_name, "upload").begin_upload(resource_name, self._clock.now())

    async def finish_upload(self, resource_name: str, body: Body) -> None:
        """Take the whole body, decompressed.

        :raises StatusError: as :meth:`begin_upload`; UNAVAILABLE if too much is held already, and
            then the device may try again.
        """
        contribution = self._book.find(resource_name, "upload")
        size = len(body)
        if self.held + size > self._max_held:
            contribution.abandon_upload(resource_name)
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {self.held} bytes of uploads that wait to be aggregated and "
                f"takes no more than {self._max_held}; upload again later",
            )
        contribution.finish_upload(
            resource_name, body, self._clock.now(), functools.partial(self._gone, size)
        )
        self.held += size

    def _gone(self, size: int) -> None:
        self.held -= size

    async def abandon_upload(self, resource_name: str) -> None:
        """Forget an upload whose bytes will not come; the device may try again."""
        try:
            contribution = self._book.find(resource_name, "upload")
        except StatusError:
            return
        contribution.abandon_upload(resource_name)

    async def download(self, name: str) -> Download:
        """Return a resource.

        :param name: what follows ``/data/`` in its address.
        :raises StatusError: NOT_FOUND if there is none, or its task has ended.
        """
        return await self._downloads.get(name)

    def is_same(self, name: str, etag: str) -> bool:
        """Whether a resource is still there with that content, as far as is known unread."""
        return self._downloads.is_same(name, etag)
