"""Puts the services together."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.engine import Engine
from fcp_core.rounds.clock import Clock, SystemClock
from fcp_core.rounds.contributions import Contribution, ContributionBook
from fcp_core.rounds.events import Event
from fcp_core.rounds.operations import OperationBook
from fcp_core.rounds.sessions import DeviceSession, SessionBook
from fcp_core.rounds.tokens import TokenSource
from fcp_core.server.services.admin import Admin
from fcp_core.server.services.aggregations import Aggregations
from fcp_core.server.services.assignments import TaskAssignments
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.eligibility import EligibilityEvalTasks
from fcp_core.server.services.eligibility_tasks import EligibilityTasks
from fcp_core.server.services.journal import Journal
from fcp_core.server.services.media import Media
from fcp_core.server.services.operations import Operations
from fcp_core.server.services.policy_states import PolicyStates
from fcp_core.server.services.population import Population, Populations
from fcp_core.server.services.round_parts import RoundParts
from fcp_core.server.services.settings import OPERATION_RETENTION, RETENTION, Settings
from fcp_core.server.services.store import TaskStore
from fcp_core.server.services.tasks import Tasks
from fcp_core.server.services.ticker import Ticker
from fcp_core.storage.contract import Storage
from fcp_core.storage.records import DeviceSessionRecord, TokenRecord

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins

logger = logging.getLogger("fcp.services")


class Services:
    """Everything behind the protocol's calls: one object for each service, named after it.

    A service's methods carry the names of its RPCs in snake case, take and return protobuf
    messages, and raise StatusError. All of it runs on one event loop.

    :param populations: those that devices may check in to; None: those that tasks are submitted
        for.
    :param base_url: where devices reach the server, with a slash at the end.
    :param rng: the randomness of selection policies; secrets come from *tokens*.
    :param storage: instead of the configured one.
    :param engine: instead of the configured one.
    :param observe: told of every event before the plugins are.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        populations: Iterable[str] | None,
        base_url: str | Callable[[], str],
        clock: Clock | None = None,
        rng: random.Random | None = None,
        tokens: TokenSource | None = None,
        storage: Storage | None = None,
        engine: Engine | None = None,
        observe: Callable[[Event], None] | None = None,
    ) -> None:
        clock = SystemClock() if clock is None else clock
        rng = random.Random() if rng is None else rng
        tokens = TokenSource() if tokens is None else tokens
        url: Callable[[], str] = (lambda: base_url) if isinstance(base_url, str) else base_url

        def data_url() -> str:
            return settings.download_prefix or url()

        settings = Settings.from_config(plugins.config)

        def make_population(name: str) -> Population:
            limit = plugins.config.scoped(name).get("max_at_work")
            return Population(name, rng, self.ticker, limit, self._states)

        def notify(event: Event) -> None:
            if observe is not None:
                observe(event)
            plugins.notify(event)

        self._storage = plugins.make_storage() if storage is None else storage
        self._engine = plugins.make_engine() if engine is None else engine
        self._store = TaskStore(self._storage)
        self._journal = Journal(self._storage)
        self._states = PolicyStates(self._journal, clock)
        #: Wakes the services; a program with a clock of its own calls ``ticker.run_due``.
        self.ticker = Ticker(clock)
        self._sessions = SessionBook(
            settings.session_timeout,
            RETENTION,
            settings.max_sessions,
            {
                name: plugins.config.scoped(name).get("session_timeout")
                for name in plugins.config.scopes("population")
            },
        )
        self._book = ContributionBook(tokens)
        self._operations = OperationBook(
            OPERATION_RETENTION, self._schedule, settings.max_operations
        )
        served = None if populations is None else tuple(populations)
        for name in plugins.config.scopes("population"):
            if served is not None and name not in served:
                logger.warning(
                    "the configuration has a section for the population %r, which is not served",
                    name,
                )
        self._populations = Populations(served, make_population)
        downloads = Downloads(settings.resource_cache)

        def make_parts(on_end: Callable[..., Any], on_loss: Callable[..., Any]) -> RoundParts:
            return RoundParts(
                clock=clock,
                ticker=self.ticker,
                tokens=tokens,
                book=self._book,
                notify=notify,
                on_left=lambda round_, contributed: self._populations.get(
                    round_.machine.population
                ).left(round_, contributed=contributed, now=clock.now()),
                on_issue=self._issued,
                on_loss=on_loss,
                on_end=on_end,
            )

        self.tasks = Tasks(
            plugins=plugins,
            clock=clock,
            tokens=tokens,
            engine=self._engine,
            store=self._store,
            populations=self._populations,
            downloads=downloads,
            make_parts=make_parts,
            on_kept=self._schedule,
        )
        self.eligibility_tasks = EligibilityTasks(
            plugins=plugins,
            clock=clock,
            ticker=self.ticker,
            tokens=tokens,
            storage=self._storage,
            populations=self._populations,
            downloads=downloads,
        )
        self.eligibility_eval_tasks = EligibilityEvalTasks(
            plugins=plugins,
            clock=clock,
            tokens=tokens,
            populations=self._populations,
            sessions=self._sessions,
            eligibility_tasks=self.eligibility_tasks,
            base_url=url,
            data_url=data_url,
            notify=notify,
            on_open=self._opened,
        )
        self.task_assignments = TaskAssignments(
            plugins=plugins,
            clock=clock,
            tokens=tokens,
            populations=self._populations,
            sessions=self._sessions,
            operations=self._operations,
            tasks=self.tasks,
            eligibility_tasks=self.eligibility_tasks,
            base_url=url,
            data_url=data_url,
            notify=notify,
        )
        self.aggregations = Aggregations(
            clock=clock,
            tokens=tokens,
            book=self._book,
            operations=self._operations,
            tasks=self.tasks,
            base_url=url,
        )
        self.operations = Operations(
            clock=clock,
            operations=self._operations,
            sessions=self._sessions,
            assignments=self.task_assignments,
        )
        self.media = Media(clock, self._book, downloads, settings.max_in_flight)
        self.admin = Admin(
            tasks=self.tasks,
            eligibility_tasks=self.eligibility_tasks,
            populations=self._populations,
            clock=clock,
            url=url,
            storage=plugins.config.get("storage"),
        )

    def add_population(self, name: str) -> None:
        """Let devices check in to a population from now on."""
        self._populations.add(name)

    def counts(self) -> dict[str, int]:
        """Return what there is of each at the moment."""
        return {
            "open_tasks": sum(len(population.open_rounds()) for population in self._populations),
            "open_operations": self._operations.open,
            "sessions": len(self._sessions),
            "waiting": sum(population.waiting for population in self._populations),
            "at_work": sum(population.at_work for population in self._populations),
        }

    async def start(self) -> None:
        """Start the engine and the storage, and take up what an earlier run left in it.

        :raises UsageError: if one of them cannot start, or an unfinished task cannot go on.
        """
        self._engine.start()
        try:
            await self._storage.start()
            loaded = await self._store.load()
            for session in loaded.sessions:
                self._sessions.restore(session.session_id, session.population, session.expires)
            for token in loaded.tokens:
                self._book.restore(
                    token.token_hash, token.aggregation_id, token.session_id, token.expires
                )
                self.tasks.remember(token.aggregation_id, token.expires)
            self._states.load(loaded.policy_states)
            self.ticker.start()
            await self.eligibility_tasks.load()
            await self.tasks.restore(loaded.tasks)
            self._schedule()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let go of everything. Tasks that have not ended go on when the storage is used again."""
        await self.tasks.stop()
        self.ticker.stop()
        for population in self._populations:
            population.save()
        await self._journal.flush()
        self._engine.stop()
        await self._storage.stop()

    def _opened(self, session: DeviceSession, forgotten: float) -> None:
        population = session.check_in.population
        self._journal.put(
            DeviceSessionRecord(
                session_id=session.session_id,
                population=population,
                state=session.state.value,
                created=forgotten - RETENTION - self._sessions.timeout_of(population),
                expires=forgotten,
            )
        )
        self._schedule()

    def _issued(self, contribution: Contribution, expires: float, replaced: str | None) -> None:
        if replaced is not None:
            self._journal.delete(TokenRecord, replaced)
        token_hash = self._book.hash_of(contribution.assignment)
        assert token_hash is not None  # a token was issued just now
        self._journal.put(
            TokenRecord(token_hash, contribution.aggregation_id, contribution.session_id, expires)
        )
        self._schedule()

    def _schedule(self) -> None:
        """See to it that expired sessions, tokens and operations go."""
        books = (
            self.tasks.next_tick(),
            self._sessions.next_tick(),
            self._book.next_expiry(),
            self._operations.next_expiry(),
        )
        when = min((at for at in books if at is not None), default=None)
        self.ticker.at("expiry", when, self._expire)

    def _expire(self, now: float) -> None:
        expired, forgotten = self._sessions.tick(now)
        for session in expired:
            self.task_assignments.expired(session, now)
        for session_id in forgotten:
            self._journal.delete(DeviceSessionRecord, session_id)
        for token_hash in self._book.pop_due(now):
            self._journal.delete(TokenRecord, token_hash)
        self._operations.pop_due(now)
        self.tasks.tick(now)
        self._schedule()
