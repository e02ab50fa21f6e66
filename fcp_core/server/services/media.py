"""The byte streams: contributions come in, plans and checkpoints go out."""

from __future__ import annotations

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.clock import Clock
from fcp_core.rounds.contributions import Body, Contribution, ContributionBook
from fcp_core.server.services.downloads import Download, Downloads


class Media:
    """Uploads and downloads.

    :param max_held: how many bytes of uploads are held until they are submitted.
    """

    def __init__(
        self, clock: Clock, book: ContributionBook, downloads: Downloads, max_held: int
    ) -> None:
        self._clock = clock
        self._book = book
        self._downloads = downloads
        self._max_held = max_held
        self._holding: set[Contribution] = set()

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
        self._holding = {other for other in self._holding if other.body is not None}
        held = sum(len(other.body or b"") for other in self._holding)
        if held + len(body) > self._max_held:
            contribution.abandon_upload(resource_name)
            raise StatusError(
                Code.UNAVAILABLE,
                f"the server holds {held} bytes of uploads that wait to be submitted and takes no "
                f"more than {self._max_held}; upload again later",
            )
        contribution.finish_upload(resource_name, body, self._clock.now())
        self._holding.add(contribution)

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
