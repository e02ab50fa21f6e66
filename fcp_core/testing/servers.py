"""A server and its devices in one process, for the tests of plugins."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from typing_extensions import Self

from fcp_core.aggregation.configuration import configuration_to_proto, flat_inputs
from fcp_core.aggregation.spec import DataType, Intrinsic
from fcp_core.client import CallableStore, Client, RetryPolicy, SessionResult, make_query_result
from fcp_core.plugins import hookimpl
from fcp_core.protocol.checkpoint import Checkpoint, open_checkpoint
from fcp_core.protocol.protos import data_type_pb2, plan_pb2
from fcp_core.rounds.events import Event
from fcp_core.rounds.machine import ManualClock
from fcp_core.rounds.tasks import TaskSpec, TaskStatus
from fcp_core.server import Server, ServerThread

T = TypeVar("T")

#: The collection that the devices here have their data in.
COLLECTION = "app:/test"

#: How long a server may be silent before a device of a test gives up, in seconds: what hangs is to
#: fail as what it is, long before the time that a test may take is over.
SILENCE = 120.0

#: A device's data: vectors of one length, by name.
Vectors = Mapping[str, Any]

_TYPES = {
    DataType.FLOAT: data_type_pb2.FLOAT,
    DataType.DOUBLE: data_type_pb2.DOUBLE,
    DataType.INT32: data_type_pb2.INT32,
    DataType.INT64: data_type_pb2.INT64,
    DataType.STRING: data_type_pb2.STRING,
}


class EventLog:
    """A plugin that remembers every event of a server."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    @hookimpl
    def fcp_event(self, event: Event) -> None:
        """Remember an event."""
        self.events.append(event)


class RunningServer:
    """A server on a thread of its own; a context manager.

    :param server: a server that was made and not started.
    :param clock: the server's clock if it is one that a test moves.
    :param log: the plugin whose events are those of the server.
    :param timeout: how long any call may take, in seconds.
    """

    def __init__(
        self,
        server: Server,
        *,
        clock: ManualClock | None = None,
        log: EventLog | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.server = server
        self.url = server.url
        self._clock = clock
        self._log = log or EventLog()
        self._timeout = timeout
        self._thread = ServerThread(server)

    @property
    def events(self) -> Sequence[Event]:
        """What has happened so far, oldest first."""
        return tuple(self._log.events)

    def submit(self, task: TaskSpec) -> str:
        """Offer a task and return its id.

        :raises StatusError: if the server refuses it.
        """
        return self._run(self.server.services.tasks.submit(task))

    def status(self, task_id: str) -> TaskStatus:
        """Return where a task stands."""
        return self._run(self.server.services.tasks.status(task_id))

    def result(self, task_id: str) -> Checkpoint:
        """Wait for a task and return its aggregate, tensors by name.

        :raises StatusError: if the task fails.
        :raises TimeoutError: if it takes too long.
        """
        return open_checkpoint(self._run(self.server.services.tasks.wait(task_id)))

    def advance(self, seconds: float) -> None:
        """Move the manual clock and let the server do what is due.

        :raises RuntimeError: if the server has no manual clock.
        """
        if self._clock is None:
            raise RuntimeError("the server was made without a ManualClock")
        self._clock.advance(seconds)
        self._run(self._run_due())

    def start(self) -> None:
        """Start it and wait until it accepts requests."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it and wait."""
        self._thread.stop()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.stop()

    async def _run_due(self) -> None:
        self.server.services.ticker.run_due()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.run(work).result(self._timeout)


def query_task(
    *intrinsics: Intrinsic,
    population: str = "people",
    name: str = "task",
    goal_count: int = 1,
    **fields: Any,
) -> TaskSpec:
    """Make a task whose devices contribute vectors of their data, without any TensorFlow.

    :param intrinsics: what is aggregated; each input is the device's vector of that name, so its
        shape is ``(n,)``, or ``(-1,)`` if every device has a length of its own.
    :param goal_count: how many contributions complete it.
    :param fields: further fields of the :class:`TaskSpec`.
    :raises ValueError: for an input that no vector can be.
    """
    plan = plan_pb2.ClientOnlyPlan()
    query = plan.phase.example_query_spec.example_queries.add()
    query.example_selector.collection_uri = COLLECTION
    for spec in (spec for intrinsic in intrinsics for spec in flat_inputs(intrinsic)):
        if spec.dtype not in _TYPES or len(spec.shape) != 1:
            raise ValueError(f"{spec} is no vector of a type that devices have")
        query.output_vector_specs[spec.name].vector_name = spec.name
        query.output_vector_specs[spec.name].data_type = _TYPES[spec.dtype]
        routes = plan.phase.federated_example_query.aggregations
        routes[spec.name].federated_compute_checkpoint_aggregation.SetInParent()
    return TaskSpec(
        population=population,
        name=name,
        plan=plan.SerializeToString(),
        aggregation=configuration_to_proto(intrinsics).SerializeToString(),
        goal_count=goal_count,
        **fields,
    )


def make_device(
    url: str, vectors: Vectors, *, population: str = "people", **options: Any
) -> Client:
    """Make a device that holds vectors.

    :param vectors: by name; see :func:`fcp_core.client.make_query_result`.
    :param options: of the :class:`fcp_core.client.Client`; ``stores`` replaces the vectors.
    """
    result = make_query_result(vectors)
    data = [result.SerializeToString()]
    options.setdefault("stores", {COLLECTION: CallableStore(lambda selector: data)})
    options.setdefault("retry", RetryPolicy(delay=0.01))
    options.setdefault("timeout", SILENCE)
    return Client(url, population, **options)


def run_devices(clients: Sequence[Client], threads: int = 8) -> list[SessionResult]:
    """Let devices go through a session each, many at a time; return what came of each."""
    with ThreadPoolExecutor(min(threads, max(1, len(clients)))) as pool:
        return list(pool.map(Client.run_once, clients))
