"""Keeps in a device's history what ran on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fcp_core.client.history import History
from fcp_core.client.stores import ExampleStore
from fcp_core.protocol.status import StatusError

if TYPE_CHECKING:
    from fcp_core.client.results import TaskResult
    from fcp_core.protocol.protos.example_query_result_pb2 import ExampleQueryResult
    from fcp_core.protocol.protos.plan_pb2 import ExampleQuerySpec, ExampleSelector

#: What stands for the name of a task in the record of an eligibility plan.
ELIGIBILITY = "(eligibility)"


class Recorder:
    """Notes the runs of one device.

    :param history: None: nothing is noted.
    :param name: the session's name.
    :param now: the time in seconds since the epoch.
    """

    def __init__(
        self, population: str, history: History | None, name: str, now: Callable[[], float]
    ) -> None:
        self._population = population
        self._history = history
        self._name = name
        self._now = now
        self._runs: dict[str, list[int]] = {}

    @contextmanager
    def run(self, task_name: str, plan: bytes, store: ExampleStore) -> Iterator[ExampleStore]:
        """Note a run, from before it begins until it ended; the plan reads the store inside.

        :param plan: serialized.
        """
        history = self._history
        if history is None:
            yield store
            return
        run = history.begin_run(self._population, task_name, self._now(), plan, session=self._name)
        self._runs.setdefault(task_name, []).append(run)
        noting = _NotingStore(store)
        outcome = "computed"
        try:
            yield noting
        except BaseException as error:
            outcome = f"computation failed: {_in_words(error)}"
            raise
        finally:
            history.end_run(run, outcome, noting.collections)

    def close_session(self, tasks: Iterable[TaskResult]) -> None:
        """Note what became of the results of a session's tasks."""
        for task in tasks:
            runs = self._runs.get(task.task_name)
            if runs and self._history is not None:
                why = f": {_in_words(task.error)}" if task.error is not None else ""
                self._history.end_run(runs.pop(0), f"{task.outcome.value}{why}")
        self._runs.clear()


class _NotingStore(ExampleStore):
    """Another store; keeps which collections were asked for."""

    def __init__(self, store: ExampleStore) -> None:
        self._store = store
        self.collections: dict[str, None] = {}

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return what the store returns."""
        self.collections.setdefault(selector.collection_uri)
        return self._store.examples(selector)

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Let the store answer."""
        self.collections.setdefault(query.example_selector.collection_uri)
        return self._store.query(query)


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, StatusError) else f"{type(error).__name__}: {error}"
