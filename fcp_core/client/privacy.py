"""The privacy policy of a device's owner: which tasks may run on the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from fcp_core.client.history import History
from fcp_core.client.protocols import PlanResults
from fcp_core.client.stores import ExampleStore
from fcp_core.errors import UsageError, reason
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.statement import Statement
from fcp_core.protocol.status import Code, StatusError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from fcp_core.protocol.protos.example_query_result_pb2 import ExampleQueryResult
    from fcp_core.protocol.protos.plan_pb2 import ExampleQuerySpec, ExampleSelector
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment

#: In seconds.
WEEK = 7 * 86400.0


class RefusedError(StatusError):
    """The owner of the device does not allow a task; it is reported as PERMISSION_DENIED."""

    def __init__(self, why: str) -> None:
        super().__init__(Code.PERMISSION_DENIED, f"the owner's privacy policy: {why}")


class Acceptance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a task must be like; all that is given must hold.

    :param collections: the collections that it is about; ``*`` stands for any letters.
    :param minimum_peers: the server must see the contribution only summed with those of others, so
        many devices at least together: secure aggregation, for all of the contribution.
    :param epsilon_per_week: what tasks say that they cost, added up over seven days, this one too.
    :param delta_per_week: the same of their deltas.
    """

    collections: tuple[str, ...] = ("*",)
    minimum_peers: Annotated[int, Meta(ge=2)] | None = None
    epsilon_per_week: Annotated[float, Meta(gt=0)] | None = None
    delta_per_week: Annotated[float, Meta(ge=0, lt=1)] = 1e-5

    def against(
        self, assignment: TaskAssignment, statement: Statement, spent: tuple[float, float] | None
    ) -> str:
        """Return what is against a task; empty: nothing."""
        if self.minimum_peers is not None:
            if not assignment.HasField("secure_aggregation_info"):
                return "it has no secure aggregation"
            info = assignment.secure_aggregation_info
            peers = info.minimum_clients_in_server_visible_aggregate
            if peers < self.minimum_peers:
                return f"its sums have at least {peers} devices, not {self.minimum_peers}"
        if self.epsilon_per_week is not None:
            if statement.epsilon is None:
                return "it does not say what epsilon it costs"
            if spent is None:
                return "there is no history that says what was spent"
            epsilon, delta = spent
            if epsilon > self.epsilon_per_week:
                return (
                    f"with it, {epsilon:g} of epsilon {self.epsilon_per_week:g} a week were spent"
                )
            if delta > self.delta_per_week:
                return f"with it, {delta:g} of delta {self.delta_per_week:g} a week were spent"
        return ""


class PrivacyPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an owner allows.

    :param never: collections, or types of selection criteria, of which nothing is given; ``*``
        stands for any letters.
    :param accept: a collection is given to a task that one of these accepts; none: to every task.
    """

    never: tuple[str, ...] = ()
    accept: tuple[Acceptance, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PrivacyPolicy:
        """Read a policy file.

        :raises UsageError: naming the file and what is wrong.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
            return msgspec.convert(document, cls)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(
                f"the privacy policy {path} cannot be read: {reason(error)}."
            ) from None
        except msgspec.ValidationError as error:
            raise UsageError(f"the privacy policy {path}: {error}.") from None

    def admit(
        self, assignment: TaskAssignment, statement: Statement, history: History | None, now: float
    ) -> Admission:
        """Return what a task may read.

        :param history: with what was spent before.
        :raises RefusedError: if it may not run at all.
        """
        if not self.accept:
            return Admission(self.never, None)
        spent = None if history is None else _spent(history, statement, now - WEEK)
        found = [(each, each.against(assignment, statement, spent)) for each in self.accept]
        accepting = [each for each, problem in found if not problem]
        if not accepting:
            raise RefusedError("; ".join(dict.fromkeys(problem for _, problem in found)))
        return Admission(self.never, accepting)


class Admission:
    """What one task may read, and how its results may leave.

    :param accepting: what accepts it; None: everything does.
    """

    def __init__(self, never: Iterable[str], accepting: Iterable[Acceptance] | None) -> None:
        self._never = tuple(never)
        self._accepting = None if accepting is None else tuple(accepting)
        #: Whether something was read of which only sums may be seen.
        self.masked = False

    def check(self, selector: ExampleSelector) -> None:
        """Note that a plan reads something.

        :raises RefusedError: if it may not.
        """
        uri, kind = selector.collection_uri, selector.criteria.type_url
        if any(fnmatchcase(name, pattern) for pattern in self._never for name in (uri, kind)):
            raise RefusedError(f"nothing is given of collection {uri!r} with such criteria")
        if self._accepting is None:
            return
        accepting = [
            each
            for each in self._accepting
            if any(fnmatchcase(uri, pattern) for pattern in each.collections)
        ]
        if not accepting:
            raise RefusedError(f"the task is not one that collection {uri!r} is given to")
        self.masked |= all(each.minimum_peers is not None for each in accepting)

    def results(self, results: PlanResults) -> PlanResults:
        """Return results as they may leave: all of them masked, if only sums may be seen."""
        if not self.masked or not results.checkpoint:
            return results
        return PlanResults(b"", {**open_checkpoint(results.checkpoint), **results.secure})


class GuardedStore(ExampleStore):
    """Another store, as far as a task may read it."""

    def __init__(self, store: ExampleStore, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return what the store returns, if it is given to the task."""
        self._admission.check(selector)
        return self._store.examples(selector)

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Let the store answer, if it is given to the task."""
        self._admission.check(query.example_selector)
        return self._store.query(query)


def check_plan(plan: Any, admission: Admission) -> None:
    """Refuse a plan of example queries as a whole, before the first of them is asked.

    :raises RefusedError: if it may not read all that it asks for.
    """
    for query in plan.phase.example_query_spec.example_queries:
        admission.check(query.example_selector)


def _spent(history: History, statement: Statement, since: float) -> tuple[float, float]:
    """Return the epsilon and the delta that tasks have cost, this one too.

    What tasks of one series say is what all of the series has cost.
    """
    series: dict[str, tuple[float, float]] = {}
    said = [*(Statement.read(text) for text in history.statements(since)), statement]
    for place, each in enumerate(said):
        if each.epsilon is not None:
            name = each.series or f"#{place}"
            before = series.get(name, (0.0, 0.0))
            series[name] = max(before[0], each.epsilon), max(before[1], each.delta)
    return sum(e for e, _ in series.values()), sum(d for _, d in series.values())
