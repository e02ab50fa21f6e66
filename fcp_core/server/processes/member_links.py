"""Links between members: each receives and accumulates uploads for the owners of populations.

Any two members keep one link. Over it each does for the other what a worker process does for the
one that decides: it receives and decompresses an upload, keeps it, and accumulates it when the
owner of its population says so. It stores what comes of that itself, in a stream of shards. The
owner alone decides what counts, and answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import socket
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fcp_core.aggregation.engine import FoldJob
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import Signal
from fcp_core.rounds.tokens import mark_in
from fcp_core.server.processes.folds import PROMPT
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.member_folds import MemberFolds
from fcp_core.server.processes.placing import Placing, Share
from fcp_core.server.processes.process_engine import ProcessEngine
from fcp_core.server.processes.remote_upload import RemoteUpload
from fcp_core.server.services.routing import lives

if TYPE_CHECKING:
    from fcp_core.server.services.media import Media
    from fcp_core.server.services.members import Members
    from fcp_core.server.services.routing import RoutingTable
    from fcp_core.server.services.store import TaskStore
    from fcp_core.server.services.streams import Stream

logger = logging.getLogger("fcp.server")

#: What a member answers that does not own the population.
MOVED = 421
#: How often members tell each other how much room they have, in the time of a lease; and how long
#: it may be from one time to the next, in seconds.
BEATS, LONGEST_BEAT = 6.0, 1.0
#: After how many lease times without a word a link is given up.
SILENCE = 3.0
#: The pause before a member is called again that did not answer, and the longest, in seconds.
PAUSE, LONGEST_PAUSE = 0.2, 10.0
#: The names of this host that mean another one elsewhere.
_LOCAL = ("localhost", "127.0.0.1", "::1")

#: Opens a connection to a member, says who calls, and attaches a link.
Dial = Callable[[str, str, Link], Awaitable[None]]


class LinkedMember:
    """Another member, as long as one link to it lasts.

    :cvar stores: that it stores what it accumulates.

    :param url: where members call it.
    :ivar streams: the streams of shards that it writes for this member.
    :ivar address: where it is to be sent uploads; ``""``: nowhere.
    :ivar share: what it has to do.
    """

    stores = True

    def __init__(self, links: MemberLinks, member_id: str, url: str) -> None:
        self.member_id, self.url = member_id, url
        self.address = ""
        self.share = Share()
        #: Since when it has shown the storage no sign of life.
        self.silent = math.inf
        self.gone = asyncio.Event()
        self.streams: set[Stream] = set()
        folds = MemberFolds(links.engine.inner, links.store, self._tell_owner, links.freed)
        self.folds = folds
        self._links = links
        #: The uploads that it receives for this member, and who sends them.
        self._uploading: dict[str, str | None] = {}
        #: Those that it holds.
        self._held: weakref.WeakValueDictionary[str, RemoteUpload] = weakref.WeakValueDictionary()
        self.link = Link(
            {
                # What an owner asks this member to do.
                **folds.calls(),
                "open_stream": folds.open_stream,
                "contribute": folds.contribute,
                "drop_stream": folds.drop_stream,
                # What it tells this member, if that is the owner.
                "begin_upload": self._begin_upload,
                "finish_upload": self._finish_upload,
                "abandon_upload": self._abandon_upload,
                "stream": self._stream,
                "room": self._room,
                "take_over": self._take_over,
            },
            self._lost,
            prompt=(
                *(*PROMPT, "room"),
                *("open_stream", "contribute", "drop_stream", "stream"),
                *("begin_upload", "finish_upload", "abandon_upload"),
            ),
        )
        self.call = self.link.call
        self.tell = self.link.tell

    def begin_stream(self, task_id: str, name: str, population: str, job: FoldJob) -> str:
        """Have it begin a stream, as ``streams.Helper``."""
        epoch = self._links.members.epochs.get(population, -1)
        # An epoch is one run's of one member, so no other stream has this name.
        stream = f"{epoch}-{next(self._links.numbers)}"
        self.tell("open_stream", stream, task_id, name, epoch, job)
        return stream

    def _tell_owner(self, *what: Any) -> None:
        self.tell("stream", *what)

    # What it calls.

    async def _stream(self, name: str, what: str, *arguments: Any) -> None:
        for each in self.streams:
            if each.name == name:
                each.hear(what, *arguments)

    async def _begin_upload(self, name: str, sender: str | None) -> int:
        self._links.check_owned(name)
        wanted = await self._links.uploads.begin_upload(name, sender)
        if wanted:
            self._uploading[name] = sender
        return wanted

    async def _finish_upload(self, name: str, sender: str | None, size: int, number: int) -> None:
        self._uploading.pop(name, None)
        self._links.check_owned(name)
        known = self._links.orphans.pop(name, None)
        if known is not None and len(known) == size and known.move(self, number):
            # It was said to be here, over a link that broke before the answer.
            self._held[name] = known
            return
        self._held[name] = body = RemoteUpload(self, number, size)
        await self._links.uploads.finish_upload(name, body, sender)

    async def _abandon_upload(self, name: str, sender: str | None) -> None:
        self._uploading.pop(name, None)
        await self._links.uploads.abandon_upload(name, sender)

    async def _room(self, address: str, host: str, free: int, used: float) -> None:
        local = urlsplit(address).hostname in _LOCAL
        self.address = "" if local and host != socket.gethostname() else address
        self.share.told(free, used)
        self._links.readdress()

    async def _take_over(self) -> None:
        """Bring here what it holds and has accumulated: it is about to end."""
        self.address = ""
        self._links.readdress()
        held = [body.fetch() for body in self._held.values() if not body.taken]
        await asyncio.gather(*held, return_exceptions=True)
        ending = [asyncio.shield(stream.end()) for stream in list(self.streams)]
        await asyncio.gather(*ending, return_exceptions=True)
        await self._links.engine.take_over(self)

    def _lost(self) -> None:
        self.address = ""
        self.gone.set()
        self._links.orphans.update(self._held)
        for stream in list(self.streams):
            stream.end()
        self.folds.clear()
        self._links.lost(self)
        uploading, self._uploading = self._uploading, {}
        for name, sender in uploading.items():
            # Their devices try again, or this member's new link takes the whole upload.
            self._links.spawn(self._links.uploads.abandon_upload(name, sender))


class MemberLinks:
    """The links of one member to all others.

    :param engine: accumulates here and in other members.
    :param store: takes what is accumulated here for others.
    :param uploads: takes what is uploaded for this member's populations.
    :param address: where devices reach this member; ``""``: others cannot send any.
    :param placing: is told where devices may be sent.
    :param freed: announced whenever fewer bytes of others' uploads are held.
    :ivar orphans: what was held by members to which the link broke, by the upload's name: it may
        be there still, and come again.
    """

    def __init__(
        self,
        members: Members,
        engine: ProcessEngine,
        store: TaskStore,
        uploads: Media,
        address: str,
        placing: Placing,
        freed: Signal,
    ) -> None:
        self.engine, self.store, self.uploads = engine, store, uploads
        self.members, self._address, self.freed = members, address, freed
        #: Those of streams.
        self.numbers = itertools.count()
        self.orphans: weakref.WeakValueDictionary[str, RemoteUpload] = weakref.WeakValueDictionary()
        self._placing, self._share = placing, placing.shares[""]
        self._linked: dict[str, LinkedMember] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving = False
        self._beating: asyncio.Future[Any] | None = None

    @property
    def held(self) -> int:
        """How many bytes of other members' uploads wait here."""
        return sum(other.folds.held for other in self._linked.values())

    def start(self, room: Callable[[], int], dial: Dial, hang_up: Callable[[str], None]) -> None:
        """Call the other members, now and whenever one comes.

        :param room: returns how many bytes of uploads this member has room for.
        :param dial: opens a connection to another member.
        :param hang_up: breaks the calls to a member that says nothing any more.
        """
        self._room, self._dial, self._hang_up = room, dial, hang_up
        self._beating = self.spawn(self._beat())
        self.members.on_change.append(self._changed)
        self._changed(self.members.table)

    def at(self, url: str) -> LinkedMember | None:
        """Return the member that others call at *url*, if there is a link to it."""
        return next((other for other in self._linked.values() if other.url == url), None)

    def readdress(self) -> None:
        """Say to which members devices may be sent now."""
        self._placing.shares = {"": self._share} | {
            other.address: other.share
            for other in self._linked.values()
            if other.address not in ("", self._address)
        }

    def check_owned(self, name: str) -> None:
        """Check that the population of an upload is this member's.

        :raises StatusError: 421 if not.
        """
        mark, members = mark_in(name), self.members
        owner = None if mark is None else members.table.owner(mark, members.clock)
        if mark in members.table.known and (owner is None or owner.url):
            raise StatusError(Code.FAILED_PRECONDITION, "it is another member's", http=MOVED)

    async def accept(self, member_id: str) -> LinkedMember:
        """Return the other end of a link that a member opens.

        :raises StatusError: UNAVAILABLE if there is no such member.
        """
        url = self.members.table.members.get(member_id)
        if url is None:
            await self.members.look()
            url = self.members.table.members.get(member_id)
        if url is None or self._leaving:
            raise StatusError(Code.UNAVAILABLE, "this member takes no links of that one")
        return LinkedMember(self, member_id, url)

    def joined(self, other: LinkedMember) -> None:
        """Use a link from now on; an older one to the same member ends."""
        if self._leaving:
            other.link.close()
            return
        older = self._linked.get(other.member_id)
        self._linked[other.member_id] = other
        if older is not None:
            older.link.close()
        logger.info("there is a link to the member at %s", other.url)
        self._tell_room(other)

    def lost(self, other: LinkedMember) -> None:
        """Do without a link that has ended."""
        if self._linked.get(other.member_id) is other:
            del self._linked[other.member_id]
        self.readdress()
        self.engine.lost(other)

    def spawn(self, work: Coroutine[Any, Any, Any] | Awaitable[Any]) -> asyncio.Future[Any]:
        """Do something beside."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def announce(self) -> None:
        """Have the others send no more devices here."""
        self._address = ""
        for other in self._linked.values():
            self._tell_room(other)

    async def leave(self, timeout: float) -> None:
        """Hand over what is here of others, for so many seconds at most, and end all links."""
        self._leaving = True
        if self._changed in self.members.on_change:
            self.members.on_change.remove(self._changed)
        for keeper in self._keepers.values():
            keeper.cancel()

        async def hand_over(other: LinkedMember) -> None:
            with contextlib.suppress(StatusError, asyncio.TimeoutError):
                await asyncio.wait_for(other.call("take_over"), timeout)

        await asyncio.gather(*map(hand_over, list(self._linked.values())))
        for other in list(self._linked.values()):
            other.link.close()
        if self._beating is not None:
            self._beating.cancel()
        await asyncio.gather(*self._keepers.values(), *self._tasks, return_exceptions=True)

    # Inside.

    def _changed(self, table: RoutingTable) -> None:
        """Call members that came. Of any two the one whose id comes first calls.

        One that shows the storage no sign of life stores nothing either, and is done without.
        """
        view, seconds = self.members.view, self.members.seconds
        for other in list(self._linked.values()) if view is not None else ():
            assert view is not None
            record = view.members.get(other.member_id)
            if record is not None and lives(record, view, seconds):
                other.silent = math.inf
                continue
            # When a storage comes back, some show themselves later than others.
            other.silent = min(other.silent, table.seen)
            if table.seen - other.silent > seconds / BEATS:
                logger.warning("the member at %s does without the storage", other.url)
                other.link.close()
        for member_id, url in table.members.items():
            if member_id > table.me and member_id not in self._keepers:
                keeper = asyncio.get_running_loop().create_task(self._keep(member_id, url))
                self._keepers[member_id] = keeper

    async def _keep(self, member_id: str, url: str) -> None:
        """Keep a link to a member as long as it is one."""
        pause = PAUSE
        try:
            while self.members.table.members.get(member_id) == url and not self._leaving:
                other = LinkedMember(self, member_id, url)
                try:
                    await self._dial(url, self.members.member_id, other.link)
                except OSError:
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    self.joined(other)
                    pause = PAUSE
                    await other.gone.wait()
                await asyncio.sleep(pause)
        finally:
            del self._keepers[member_id]

    async def _beat(self) -> None:
        """Say how much room there is, again and again, to who is there, and was heard lately."""
        beat = min(LONGEST_BEAT, self.members.seconds / BEATS)
        while True:
            await asyncio.sleep(beat)
            linked = list(self._linked.values())
            self._share.told(self._room(), time.process_time())
            self._placing.learn({"": self._share, **{each.url: each.share for each in linked}})
            for other in linked:
                self._tell_room(other)
                other.link.silence += 1
                if other.link.silence * beat > SILENCE * self.members.seconds:
                    logger.warning("the member at %s says nothing any more", other.url)
                    other.link.close()
                    self._hang_up(other.url)

    def _tell_room(self, other: LinkedMember) -> None:
        here = (self._address, socket.gethostname())
        other.tell("room", *here, self._room(), time.process_time())
