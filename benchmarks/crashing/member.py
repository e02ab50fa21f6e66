"""One server process of a run: the product's own services, from a start to a kill."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.crashing import releases
from benchmarks.crashing.disk import Handle
from benchmarks.crashing.virtual import MEMBER, LostError
from benchmarks.crashing.wires import engine_of, links_of
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.keys import DeploymentKeys, format_keys
from fcp_core.rounds.machine import SystemClock
from fcp_core.rounds.token_parts import TokenSource
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.member_links import MemberLinks
from fcp_core.server.services import Services
from fcp_core.storage.contract import StorageError

if TYPE_CHECKING:
    from benchmarks.crashing.world import World

T = TypeVar("T")

POPULATIONS = ("phones", "tablets")
#: How long a lease lasts, in virtual seconds.
LEASE = 10.0
#: For how long a call waits for an owner, in virtual seconds.
PATIENCE = 30.0

_plugins: dict[tuple[bool, bool], Plugins] = {}


class Member:
    """One server process: its services, from a start to a kill."""

    def __init__(self, world: World, number: int) -> None:
        self.number = number
        self.url = f"http://localhost:{1000 + number}/"
        self.tasks: list[asyncio.Task[Any]] = []
        self.dead = world.loop.create_future()
        self.ready = False
        self.handle = Handle(
            world.disk, shared=world.plan.members > 1, die=lambda: world.kill(number, 3.0)
        )
        self.offset = 0.0
        #: Until when it is paused, and how much it has to do then.
        self.wakes, self.turns = 0.0, 0
        #: To other members; None: there can be none.
        self.links: MemberLinks | None = None
        self.world = world
        #: What its tasks run in.
        self.context = copy_context()
        self.context.run(MEMBER.set, self)
        self.services: Services

    async def start(self) -> None:
        """Start; try again until the storage lets it."""
        while True:
            self.services = self._make()
            try:
                await self.services.start()
            except StorageError:
                await asyncio.sleep(1.0)
                self.tasks = [task for task in self.tasks if not task.done()]
            except Exception as error:
                if not self.dead.done():
                    self.world.broken.append(f"a start failed: {type(error).__name__}: {error}")
                return
            else:
                break
        self.ready = True
        if self.links is not None:
            # A call that is passed on has no connection here that could be broken.
            self.links.start(lambda: 1 << 30, self._dial, lambda url: None)

    async def _dial(self, url: str, member_id: str, link: Link) -> None:
        found = (each for each in self.world.members if each is not None and each.url == url)
        await self.world.wires.dial(self, link, next(found, None))

    async def stop(self) -> None:
        """Stop, as after SIGTERM."""
        if self.links is not None:
            self.links.announce()
        await self.services.give_back()
        if self.links is not None:
            await self.links.leave(PATIENCE)
        await self.services.stop()

    def _make(self) -> Services:
        world = self.world
        clock = SystemClock(
            lambda: 1_800_000_000.0 + world.loop.time() + self.offset, world.loop.time
        )
        plugins = plugins_of(world.plan.late, noisy=bool(world.plan.releases))
        engine = engine_of(plugins.aggregators, shared=self.handle.shared)
        made = Services(
            plugins,
            populations=POPULATIONS,
            base_url=self.url,
            member_url=self.url,
            clock=clock,
            rng=random.Random(world.rng.random()),
            secrets=TokenSource(world.rng.randbytes),
            storage=self.handle,
            engine=engine,
        )
        if self.handle.shared:
            self.links = links_of(self, made, engine)
        return made

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something as this process would."""
        return self.context.copy().run(self.world.loop.create_task, work)

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have this process do something, and wait for the answer.

        :raises LostError: if it dies before.
        """
        if self.dead.done():
            raise LostError
        task = self.spawn(work())
        # Whoever gives it up hears nothing of it.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((task, self.dead), return_when=asyncio.FIRST_COMPLETED)
        if self.dead.done():
            task.cancel()
            raise LostError
        if task.cancelled():
            # Whoever stops a population lets go of what it does for it.
            raise LostError
        return task.result()


def plugins_of(late: bool, *, noisy: bool) -> Plugins:
    """Return the configuration; it is read once.

    :param noisy: whether results have noise.
    """
    if (late, noisy) not in _plugins:
        keys = DeploymentKeys.create(random.Random(0).randbytes)
        _plugins[late, noisy] = Plugins.load(
            extra=[releases.plugin()] if noisy else [],
            environ={"FCP_TOKEN_KEYS": format_keys(keys)},
            working_folder="/",
            overrides={
                "lease_seconds": LEASE,
                "late_contributions": "accept" if late else "refuse",
                "over_selection": 2,
                "assignment_timeout": "60s",
                "retry_min": "1s",
                "retry_max": "5s",
                **(releases.OPTIONS if noisy else {}),
            },
        )
    return _plugins[late, noisy]
