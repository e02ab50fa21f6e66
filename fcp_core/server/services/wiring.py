"""Makes the services and connects them; it does nothing else."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from fcp_core.aggregation.engine import Engine, start_engine, stop_engine
from fcp_core.plugins.settings import PopulationSettings, ServerSettings
from fcp_core.protocol.routes import Route, method_name
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.assignment import UploadMemory
from fcp_core.rounds.events import Event, Rejected
from fcp_core.rounds.keys import DeploymentKeys
from fcp_core.rounds.machine import Clock, SystemClock, follow
from fcp_core.rounds.token_parts import TokenSource, mark_of
from fcp_core.rounds.tokens import Tokens, label
from fcp_core.server.file_lock import lock_of
from fcp_core.server.keys import keys_path, load_keys, read_file
from fcp_core.server.services.admin import Admin
from fcp_core.server.services.assignments import TaskAssignments
from fcp_core.server.services.common import Common
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.eligibility import EligibilityEvalTasks
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.media import Media
from fcp_core.server.services.members import Members
from fcp_core.server.services.operations import Operations
from fcp_core.server.services.ownership import Ownership
from fcp_core.server.services.pages import PluginPages
from fcp_core.server.services.policy_states import PolicyStates
from fcp_core.server.services.population import Population, Populations
from fcp_core.server.services.protocol_calls import ProtocolCalls
from fcp_core.server.services.rejections import rejection
from fcp_core.server.services.routing import secrets_of, this_member
from fcp_core.server.services.schedules import Schedules
from fcp_core.server.services.store import TaskStore
from fcp_core.server.services.task_parts import Surroundings
from fcp_core.server.services.tasks import Tasks
from fcp_core.server.services.ticker import Ticker
from fcp_core.server.services.writes import Writes
from fcp_core.storage.contract import Storage, check_contract
from fcp_core.storage.shards import FenceMaker, unfenced

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins
    from fcp_core.server.processes.linked_media import LinkedMedia

logger = logging.getLogger("fcp.services")

_FCP = "google.internal.federatedcompute.v1"


class Services:
    """Everything behind the protocol's calls: one object for each service, named after it.

    A service's methods carry the names of its RPCs in snake case, take and return protobuf
    messages, and raise StatusError. All of it runs on one event loop.

    :param populations: those that devices may check in to; None: those that tasks are submitted
        for.
    :param base_url: where devices reach the server, with a slash at the end; ``/`` is the host that
        they use already.
    :param data_url: the same for downloads, which need a whole address, if it is another.
    :param rng: the randomness of selection policies; secrets come from *secrets*.
    :param storage: instead of the configured one.
    :param engine: instead of the configured one.
    :param observe: called with every event before the plugins are.
    :param member_url: where other members reach this server, with a slash at the end.
    :param place: returns where uploads of such a size go; ``""``: here; None: all of them.
    :raises UsageError: if the keys that sign tokens cannot be used.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        populations: Iterable[str] | None,
        base_url: str | Callable[[], str],
        data_url: Callable[[], str] | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        secrets: TokenSource | None = None,
        storage: Storage | None = None,
        engine: Engine | None = None,
        observe: Callable[[Event], None] | None = None,
        member_url: str = "",
        place: Callable[[int], str] | None = None,
    ) -> None:
        clock = SystemClock() if clock is None else clock
        rng = random.Random() if rng is None else rng
        settings = ServerSettings.from_config(plugins.config)

        notify = plugins.notify if observe is None else _both(observe, plugins.notify)
        observed = plugins.observed if observe is None else partial(bool, True)
        self._clock, self._notify, self._config = clock, notify, plugins.config
        self._storage = plugins.make_storage() if storage is None else storage
        self._lock = lock_of(self._storage)
        self._engine = plugins.make_engine() if engine is None else engine
        keys = load_keys(plugins.config, self._storage)
        self.url = url = partial(str, base_url) if isinstance(base_url, str) else base_url
        prefix = settings.download_prefix
        source = TokenSource() if secrets is None else secrets
        self._tokens = Tokens(keys.keyring, keys.deployment)
        common = Common(
            clock=clock,
            tokens=self._tokens,
            secrets=source,
            base_url=url,
            data_url=partial(str, prefix) if prefix else data_url or url,
            notify=notify,
            observed=observed,
            writes=Writes(),
            memory=UploadMemory(settings.max_in_flight),
            place=place,
        )
        #: Wakes the services; a program with a clock of its own calls ``ticker.run_due``.
        self.ticker = Ticker(clock)
        served = None if populations is None else tuple(populations)
        self._join(member_url, keys, settings, served or (), source)
        self._states = PolicyStates(self._storage, clock, common.writes, self._fence)
        self._warn_of_unserved(plugins, served)

        claim = None if self.members is None else self.members.claim
        self._populations = Populations(served, self._population_maker(plugins, rng), claim)
        self._wire_tasks(plugins, settings, common)
        self._wire_devices(plugins, settings, common)
        self._wire_admin(settings)

    def _population_maker(
        self, plugins: Plugins, rng: random.Random
    ) -> Callable[[str], Population]:
        self._settings_of = partial(PopulationSettings.of, plugins.config)

        def make(name: str) -> Population:
            of = self._settings_of(name)
            notify, states = self._notify, self._states
            return Population(name, rng, self.ticker, settings=of, notify=notify, states=states)

        return make

    def _join(
        self,
        url: str,
        keys: DeploymentKeys,
        settings: ServerSettings,
        served: Sequence[str],
        source: TokenSource,
    ) -> None:
        """Be a member, if the storage can have several."""
        #: The other servers that share the storage; None: there can be none.
        self.members: Members | None = None
        #: Checks, in a transaction that writes, that a population is ours.
        lock = self._lock
        self._fence: FenceMaker = unfenced if lock is None else lambda: lock.fence
        if self._storage.shared:
            self.members = Members(
                self._storage,
                this_member(self.url(), url, keys, source),
                seconds=settings.lease_seconds,
                offered=served,
                secrets=secrets_of(keys),
                clock=self._clock,
            )
            self._fence = self.members.fence

    def _wire_tasks(self, plugins: Plugins, settings: ServerSettings, common: Common) -> None:
        members = self.members
        self.store = TaskStore(
            self._storage,
            common.writes,
            self._fence,
            lambda task_id: None if members is None else members.table.population_of(task_id),
        )
        self._downloads = Downloads()
        self.tasks = Tasks(
            plugins=plugins,
            secrets=common.secrets,
            store=self.store,
            populations=self._populations,
            downloads=self._downloads,
            surroundings=Surroundings(
                common.clock,
                self.ticker,
                self._engine,
                common.memory,
                self.store.writes,
                common.notify,
                common.observed,
            ),
        )
        self.schedules = Schedules(
            self.tasks, common.clock, self.ticker, self._storage, self._fence
        )
        self.eligibility_tasks = EligibilityTasks(
            plugins=plugins,
            clock=common.clock,
            ticker=self.ticker,
            tokens=common.secrets,
            storage=self._storage,
            fence=self._fence,
            populations=self._populations,
            downloads=self._downloads,
        )

    def _wire_devices(self, plugins: Plugins, settings: ServerSettings, common: Common) -> None:
        self.eligibility_eval_tasks = EligibilityEvalTasks(
            common,
            plugins=plugins,
            populations=self._populations,
            eligibility_tasks=self.eligibility_tasks,
            max_sessions=settings.max_sessions,
        )
        self.task_assignments = TaskAssignments(
            common,
            plugins=plugins,
            populations=self._populations,
            tasks=self.tasks,
            eligibility_tasks=self.eligibility_tasks,
        )
        self.protocol_calls = ProtocolCalls(
            common,
            tasks=self.tasks,
            factories=plugins.protocols.values(),
            accepts_late=settings.accepts_late,
        )
        self.operations = Operations(
            clock=common.clock, assignments=self.task_assignments, calls=self.protocol_calls
        )
        self.media: Media | LinkedMedia = Media(self.protocol_calls, self._downloads, common.memory)
        self._services: dict[str, object] = {
            f"{_FCP}.EligibilityEvalTasks": self.eligibility_eval_tasks,
            f"{_FCP}.TaskAssignments": self.task_assignments,
            "google.longrunning.Operations": self.operations,
        }

    def _wire_admin(self, settings: ServerSettings) -> None:
        self.admin = Admin(
            tasks=self.tasks,
            eligibility_tasks=self.eligibility_tasks,
            schedules=self.schedules,
            populations=self._populations,
            clock=self._clock,
            url=self.url,
            storage=settings.storage,
            members=self.members,
        )
        #: What answers for all members.
        self.shared_admin: Any = self.admin
        #: The pages of plugins; the server that has these services makes them.
        self.pages = PluginPages({})

    def method(self, route: Route) -> Callable[[Any, str | None], Awaitable[Any]] | None:
        """Return what serves a call: of a request and its sender to the response; None: nothing.

        Aggregation protocols bring services of their own.
        """
        if route.service in self.protocol_calls.services:
            return self.protocol_calls.method(route)
        service = self._services.get(route.service)
        found: Callable[[Any, str | None], Awaitable[Any]] | None
        found = getattr(service, method_name(route.method), None)
        return found

    def turn_away(self, route: Route, variables: Mapping[str, str]) -> Message | None:
        """Return what a call is answered with that cannot be served now; None: with its error.

        :param variables: those of the call's path.
        """
        now, known = self._clock.now(), True
        name = variables.get("population_name", "")
        try:
            population = self._populations.get(name)
        except StatusError:
            if self.members is None:
                return None
            # It is another member's, or nobody's for a moment, or the storage does not say.
            window = self._settings_of(name).retry
            known = mark_of(name) in self.members.table.known
        else:
            window = population.rejection_window(population.settings.retry, now)
        session_id = variables.get("session_id", "")
        found = rejection(route, session_id, window)
        if found is not None and known:  # what anybody calls a population is not for observers
            session = label(session_id) if session_id else ""
            self._notify(Rejected(now, name, session, "busy"))
        return found

    async def problem(self) -> str:
        """Say why the server takes no new devices at the moment; ``""`` if it does."""
        if self.members is not None and not self.members.in_touch:
            return "the storage does not answer"
        return self.store.writes.trouble()

    def reload_keys(self) -> None:
        """Read the file with the keys that sign tokens again, if there is one.

        :raises UsageError: if it cannot be used; nothing is changed then.
        """
        path = keys_path(self._config, self._storage)
        if self._config.get("token_keys") is None and path is not None:
            keys = read_file(path)
            self._tokens.use(keys.keyring)
            if self.members is not None:
                self.members.table = replace(self.members.table, secrets=tuple(secrets_of(keys)))
                for callback in self.members.on_change:
                    callback(self.members.table)

    def add_population(self, name: str) -> None:
        """Let devices check in to a population from now on."""
        self._populations.add(name)

    def counts(self) -> dict[str, int]:
        """Return what there is of each at the moment."""
        return {
            "open_tasks": sum(len(population.open_tasks()) for population in self._populations),
            "open_operations": sum(population.waiting for population in self._populations),
            "sessions": self._populations.sessions,
            "waiting": sum(population.waiting for population in self._populations),
            "at_work": sum(population.at_work for population in self._populations),
            "populations": sum(1 for _ in self._populations),
            "heartbeat_age": 0 if self.members is None else round(self.members.behind),
        }

    async def start(self) -> None:
        """Start the engine and the storage, and take up what an earlier run left in it.

        :raises UsageError: if one of them cannot start, another server uses the storage's file, or
            an unfinished task cannot go on.
        """
        await start_engine(self._engine)
        try:
            if self._lock is not None:
                self._lock.take()
            await self._storage.start()
            now = await check_contract(self._storage)
            if self.members is not None:
                follow(self._clock, now)
                self.ticker.start()
                kept = (self.tasks, self.eligibility_tasks, self.schedules)
                keeper = Ownership(self.store, self._states, self._populations, *kept)
                await self.members.start(keeper)
                return
            loaded = await self.store.load()
            await self.tasks.verify(loaded)
            self._states.load(loaded.policy_states)
            self.ticker.start()
            await self.eligibility_tasks.load()
            await self.tasks.restore(loaded.tasks)
            await self.schedules.load()
        except BaseException:
            await self.stop()
            raise

    async def give_back(self) -> None:
        """Let other members have what this one owns, if there are any."""
        if self.members is not None:
            await self.members.drain(self._config.get("drain_timeout"))

    async def stop(self) -> None:
        """Release everything. Tasks that have not ended go on when the storage is used again."""
        if self.members is not None:
            await self.members.stop()
        await self.schedules.stop()
        await self.tasks.stop()
        self.ticker.stop()
        for population in self._populations:
            population.save()
        await self._states.stop()
        await stop_engine(self._engine)
        await self._storage.stop()
        if self._lock is not None:
            self._lock.free()

    @staticmethod
    def _warn_of_unserved(plugins: Plugins, served: tuple[str, ...] | None) -> None:
        for name in plugins.config.scopes("population"):
            if served is not None and name not in served:
                logger.warning(
                    "the configuration has a section for the population %r, which is not served",
                    name,
                )


def _both(
    first: Callable[[Event], None], second: Callable[[Event], None]
) -> Callable[[Event], None]:
    def notify(event: Event) -> None:
        first(event)
        second(event)

    return notify
