"""Uploads at any member: they are received here, whoever owns their populations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from fcp_core.aggregation.engine import HeldBody
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.protocols import Body
from fcp_core.rounds.tokens import mark_in
from fcp_core.server.processes.member_links import MOVED, LinkedMember, MemberLinks

if TYPE_CHECKING:
    from fcp_core.server.services.media import Media
    from fcp_core.server.services.members import Members

T = TypeVar("T")

#: For how many lease times an upload waits for an owner.
PATIENCE = 3.0
#: The pause before the owner is looked for again, and how long to wait for the storage's answer.
PAUSE, LOOK = 0.05, 1.0


class LinkedMedia:
    """Has the interface of ``Media``; uploads of other members' populations go over the links.

    :param media: this member's own.
    """

    def __init__(self, media: Media, members: Members, links: MemberLinks) -> None:
        self._media, self._members, self._links = media, members, links
        self.download, self.is_same, self.behind = media.download, media.is_same, media.behind
        self.freed = media.freed

    @property
    def held(self) -> int:
        """How many bytes of uploads wait here."""
        return int(self._media.held) + self._links.held

    @property
    def storing(self) -> int:
        """How many bytes of large ones are accumulated and not stored yet."""
        return int(self._media.storing)

    async def begin_upload(self, resource_name: str, sender: str | None = None) -> int:
        """Let an upload begin, as ``Media.begin_upload``."""
        name = resource_name
        return await self._at_owner(
            name,
            lambda: self._media.begin_upload(name, sender),
            lambda other: other.call("begin_upload", name, sender),
        )

    async def finish_upload(
        self, resource_name: str, body: Body, sender: str | None = None
    ) -> None:
        """Keep the body for the owner, whoever that is by now, as ``Media.finish_upload``."""
        name = resource_name

        async def there(other: LinkedMember) -> None:
            data = await body.fetch() if isinstance(body, HeldBody) else body
            number = other.folds.keep(data)
            try:
                await other.call("finish_upload", name, sender, len(data), number)
            except BaseException:
                await other.folds.drop_body(number)
                raise

        await self._at_owner(name, lambda: self._media.finish_upload(name, body, sender), there)

    async def abandon_upload(self, resource_name: str, sender: str | None = None) -> None:
        """Forget an upload, as ``Media.abandon_upload``; who lost it has forgotten it anyway."""
        mark, members = mark_in(resource_name), self._members
        owner = None if mark is None else members.table.owner(mark, members.clock)
        other = None if owner is None else self._links.at(owner.url)
        if other is None:
            await self._media.abandon_upload(resource_name, sender)
        else:
            other.tell("abandon_upload", resource_name, sender)

    async def _at_owner(
        self,
        name: str,
        here: Callable[[], Awaitable[T]],
        there: Callable[[LinkedMember], Awaitable[T]],
    ) -> T:
        """Have the owner of an upload's population take it, and the next one if that changes.

        :raises StatusError: what the owner says; UNAVAILABLE if there is none for too long.
        """
        members, mark = self._members, mark_in(name)
        end = asyncio.get_running_loop().time() + PATIENCE * members.seconds
        while True:
            owner = None if mark is None else members.table.owner(mark, members.clock)
            if (owner is not None and not owner.url) or mark not in members.table.known:
                return await here()
            other = None if owner is None else self._links.at(owner.url)
            if other is not None:
                try:
                    return await there(other)
                except StatusError as error:
                    if error.http != MOVED and not other.gone.is_set():
                        raise
            if asyncio.get_running_loop().time() >= end:
                raise StatusError(
                    Code.UNAVAILABLE,
                    "no member of the server owns this population now; upload again later",
                )
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(members.look(), LOOK)
            await asyncio.sleep(PAUSE)
