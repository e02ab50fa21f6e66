"""Results with noise: resumed when a task begins, drawn and booked when it ends.

The noise is drawn here, in the process that owns the task, from a partial aggregate that holds
everything, and nowhere else. Ledgers book it in the transaction that stores the result.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from os import urandom
from typing import TYPE_CHECKING, Any

import msgspec

from fcp_core.aggregation.binding import BoundIntrinsic
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator
from fcp_core.aggregation.engine import CheckpointFormat, Finished, Fold
from fcp_core.aggregation.release import (
    Promise,
    Randomised,
    Release,
    ReleaseContext,
    Released,
    Resumed,
)
from fcp_core.errors import plugin_errors
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.statement import add_statement
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.ledger import Account, Ledger, Planned, ReleaseRefusedError
from fcp_core.rounds.specification import TaskSpec
from fcp_core.server.services.ledgers import of_ledger
from fcp_core.storage.accounts import SERIES, Booking
from fcp_core.storage.contract import StorageError
from fcp_core.storage.records import TaskRecord

if TYPE_CHECKING:
    from fcp_core.server.services.store import TaskStore

logger = logging.getLogger("fcp.services")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A result that was drawn and is not stored yet.

    :param costs: of its aggregators with noise.
    :param series: accounts with the version that it was drawn from, and their new data.
    """

    result: bytes
    costs: tuple[Mapping[str, Any], ...]
    noise: tuple[Mapping[str, Any], ...]
    series: Mapping[str, tuple[int, bytes]]


class TaskRelease:
    """How the result of one task is drawn and booked.

    :param bound: the task's aggregators.
    :param ledgers: all that there are.
    :ivar drawn: the result, once it is drawn.
    """

    def __init__(
        self,
        spec: TaskSpec,
        created: float,
        bound: Sequence[BoundIntrinsic],
        store: TaskStore,
        ledgers: Sequence[Ledger],
    ) -> None:
        self.bound = tuple(bound)
        self._store, self._ledgers = store, ledgers
        self._goal_count = spec.goal_count
        self._series = series_of(spec, bound)
        self.planned = Planned(
            spec.slim(),
            created,
            costs=tuple(spec.costs),
            exact=tuple(
                sorted({item.factory.name for item in bound if not item.factory.randomised})
            ),
            options={item.factory.name: item.options for item in bound if item.factory.randomised},
            series=frozenset(self._series.values()),
        )
        self.drawn: Drawn | None = None

    @property
    def has_noise(self) -> bool:
        """Whether the result is drawn."""
        return any(item.factory.randomised for item in self.bound)

    async def plan(self) -> Mapping[str, Account]:
        """Find out what the release will cost at most; return the accounts that it may change.

        :raises StatusError: INVALID_ARGUMENT if there can be no such release; UNAVAILABLE.
        """
        names = [*self._names(self.planned), *self._series.values()]
        accounts = await self._store.accounts(names)
        if self.has_noise:
            # That may take a while: it computes sensitivities.
            promises = await asyncio.to_thread(self._promises, accounts)
            costs = (*(promise.cost for promise in promises), *self.planned.spec.costs)
            self.planned = dataclasses.replace(self.planned, costs=costs)
        return accounts

    async def restored(self) -> None:
        """Find out what the release of a task of an earlier run will cost, if that can be said.

        :raises StorageError: if the storage does not answer.
        """
        try:
            await self.plan()
        except StorageError:
            raise
        except StatusError as error:
            name = self.planned.spec.name
            logger.warning("what task %s costs is not known before its end: %s", name, error)

    async def check(self, others: Sequence[Planned]) -> None:
        """Ask the ledgers before the task is offered.

        :param others: the tasks of its population that are open.
        :raises StatusError: INVALID_ARGUMENT with all that they have against it; UNAVAILABLE.
        """
        accounts = await self.plan()
        problems = [
            f"task {other.spec.name} of the same series is open; wait for its end, or name another "
            "series."
            for other in others
            if self.planned.series & other.series
        ]
        if self._ledgers:
            problems += await asyncio.to_thread(self._ask, self.planned, accounts, others)
        if problems:
            name = self.planned.spec.name
            raise StatusError(Code.INVALID_ARGUMENT, f"task {name}: {' '.join(problems)}")

    async def problems(self, planned: Planned, others: Sequence[Planned]) -> list[str]:
        """Return what the ledgers have against a release of this task, or of one like it.

        :raises StatusError: UNAVAILABLE if the storage does not answer.
        """
        accounts = await self._store.accounts(self._names(planned))
        return await asyncio.to_thread(self._ask, planned, accounts, others)

    def stated(self, spec: TaskSpec) -> TaskSpec:
        """Return the specification with what devices are told of the release in its plan."""
        said: dict[str, Any] = {}
        for ledger in self._ledgers:
            try:
                said.update(ledger.statement(self.planned))
            except plugin_errors():
                logger.exception("the ledger %s failed to state a task", ledger.name)
        return spec.replace(plan=add_statement(spec.plan, said)) if said else spec

    async def draw(self, fold: Fold, result_format: CheckpointFormat) -> bytes:
        """Draw the result of what a fold holds; the fold is finished.

        :raises StatusError: why there is none.
        """
        finished = await asyncio.wrap_future(fold.finish())
        name = self.planned.spec.name
        accounts = await self._store.writes.until_done(
            f"what the series of task {name} keeps",
            lambda: self._store.accounts(self._series.values()),
        )
        self.drawn = await asyncio.to_thread(self._draw, finished, accounts, result_format)
        fold.abort()
        return self.drawn.result

    def booking(self) -> Booking | None:
        """Return what is written with the result; None if it costs nothing."""
        drawn = self.drawn or Drawn(b"", (), (), {})
        costs = (*drawn.costs, *self.planned.spec.costs)
        if self.drawn is None and not costs:
            return None
        planned = dataclasses.replace(self.planned, costs=costs)

        def change(accounts: Mapping[str, Account]) -> Mapping[str, bytes]:
            after: dict[str, bytes] = {}
            for ledger in self._ledgers:
                try:
                    after.update(ledger.book(planned, accounts))
                except StatusError:
                    raise
                except plugin_errors() as error:
                    logger.exception("the ledger %s failed to book a release", ledger.name)
                    raise ReleaseRefusedError(
                        f"the ledger {ledger.name} failed to book it: {error}"
                    ) from None
            return after

        data = {"costs": costs, "noise": drawn.noise}
        release = msgspec.json.encode(data)
        return Booking(self._names(planned), change, drawn.series, release)

    def booked(self, accounts: Mapping[str, Account]) -> dict[str, float]:
        """Tell the ledgers what was written; return their figures."""
        figures: dict[str, float] = {}
        for ledger in self._ledgers:
            try:
                population = self.planned.spec.population
                figures.update(ledger.booked(population, of_ledger(ledger, accounts)))
            except plugin_errors():
                logger.exception("the ledger %s failed to note what it has booked", ledger.name)
        return figures

    def _ask(
        self, planned: Planned, accounts: Mapping[str, Account], others: Sequence[Planned]
    ) -> list[str]:
        """Return what the ledgers have against a task."""
        problems: list[str] = []
        for ledger in self._ledgers:
            try:
                problems += ledger.check(planned, accounts, others)
            except StatusError as error:
                problems.append(error.message)
            except plugin_errors() as error:
                logger.exception("the ledger %s failed to check a task", ledger.name)
                problems.append(f"the ledger {ledger.name} could not check the task: {error}")
        return problems

    def _promises(self, accounts: Mapping[str, Account]) -> list[Promise]:
        promises = []
        for place, item in enumerate(self.bound):
            if item.factory.randomised:
                accumulator = item.make()
                assert isinstance(accumulator, Randomised)  # as its factory says
                promises.append(_promised(item, accumulator, self._context(place, accounts)))
        return promises

    def _names(self, planned: Planned) -> list[str]:
        return [name for ledger in self._ledgers for name in ledger.accounts(planned)]

    def _context(self, place: int, accounts: Mapping[str, Account]) -> ReleaseContext:
        series = self._series.get(place, "")
        account = accounts.get(series)
        state = account.data if account is not None and account.version else None
        return ReleaseContext(self._goal_count, state, series, urandom)

    def _draw(
        self, finished: Finished, accounts: Mapping[str, Account], result_format: CheckpointFormat
    ) -> Drawn:
        aggregator = CheckpointAggregator.load(self.bound, b"".join(finished.pieces))
        released: Released = aggregator.release(
            [self._context(place, accounts) for place in range(len(self.bound))]
        )
        releases: Mapping[int, Release] = released.releases
        series = {}
        for place, release in releases.items():
            if release.state is not None:
                name = self._series[place]
                series[name] = (accounts[name].version, release.state)
        promises = [release.promise for release in releases.values()]
        return Drawn(
            write_checkpoint(released.tensors, result_format),
            tuple(promise.cost for promise in promises),
            tuple(noise.to_json() for promise in promises for noise in promise.noise),
            series,
        )


async def resume(
    record: TaskRecord, spec: TaskSpec, bound: Sequence[BoundIntrinsic], store: TaskStore
) -> tuple[TaskRecord, TaskSpec]:
    """Begin a round where the last one of its series ended.

    :returns: the record with the options of its aggregators, and the specification with what its
        devices need to know in its checkpoint.
    :raises StatusError: INVALID_ARGUMENT if an aggregator cannot go on, or devices could not be
        told.
    """
    series = series_of(spec, bound)
    if not series:
        return record, spec
    accounts = await store.accounts(series.values())
    options: dict[str, Mapping[str, Any]] = {}
    tensors: dict[str, Any] = {}
    for place, name in series.items():
        item = bound[place]
        assert item.factory.resume is not None  # or it would have no series
        account = accounts[name]
        try:
            begun: Resumed = item.factory.resume(
                item.options, account.data if account.version else None
            )
        except plugin_errors() as error:
            raise item.fault("resume", error, Code.INVALID_ARGUMENT) from error
        if begun.options:
            options[item.factory.name] = begun.options
        tensors.update(begun.tensors)
    if tensors:
        kept = dict(open_checkpoint(spec.checkpoint)) if spec.checkpoint else {}
        checkpoint_format: CheckpointFormat = (
            "federated_compute" if spec.checkpoint.startswith(b"FCv1") else "tf_v1"
        )
        spec = spec.replace(checkpoint=write_checkpoint({**kept, **tensors}, checkpoint_format))
    return dataclasses.replace(record, resumed=msgspec.json.encode(options)), spec


def resumed_options(
    record: TaskRecord, options: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Mapping[str, Any]]:
    """Return the options of a task's aggregators, with those that its round began with."""
    if not record.resumed:
        return options
    resumed: Mapping[str, Mapping[str, Any]] = msgspec.json.decode(record.resumed)
    return {**options, **{name: {**options.get(name, {}), **resumed[name]} for name in resumed}}


def series_of(spec: TaskSpec, bound: Sequence[BoundIntrinsic]) -> dict[int, str]:
    """Return the accounts of the series that a task goes on with, by intrinsic."""
    return {
        place: f"{SERIES}{spec.population}/{item.options.get('series') or spec.name}/"
        f"{item.factory.name}/{place}"
        for place, item in enumerate(bound)
        if item.factory.resume is not None
    }


def _promised(item: BoundIntrinsic, accumulator: Randomised, context: ReleaseContext) -> Promise:
    with item.guard("promise"):
        return accumulator.promise(context)
