"""The contract of an aggregation protocol: how contributions come in, on the server's side.

A protocol is one machine per task. It does no input or output, reads no clock and makes no random
numbers of its own: each method gets what happened and the time in seconds, and returns effects that
the core carries out. The device's side is ``fcp_core.client.protocols``.

What the core does itself, whatever a protocol says:

* it checks tokens, and that a call comes from the device that the assignment was given to;
* it moves assignments, counts contributions, and ends the task at its goal or its deadline;
* the same call of one assignment sent again gets the first call's answer and has no second effect.
  An error is not kept: after one the device may try the call again;
* a device whose contribution is needed is answered OK to a *concluding* call if and only if it is
  counted. An
  answer that says otherwise is replaced, logged with the protocol's name, and the device dropped.
  One that is counted before it concludes is answered OK, with an empty response;
* a device that comes too late through no fault of its own (the goal is reached, the task has ended,
  a restart of the server lost its place) is not counted and counts as *surplus*. Unless the task
  says ``late_contributions = refuse``, it is answered OK all the same, since a refusal sends it
  away for hours: :attr:`AggregationProtocolFactory.late` says how, and its uploads are dropped as
  they come. If the protocol does not say, a concluding call gets an empty response (if it is
  long-running, its operation is done with one), and any other call ABORTED;
* an exception in a protocol drops the assignment that it was about; the task goes on;
* a call that is never answered gets an error when its assignment is dropped or the task ends.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.aggregation.engine import HeldBody
    from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
    from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
    from fcp_core.rounds.tasks import TaskSpec


class Tickets(Protocol):
    """What the core gives out for one assignment. Asked again, each says the same again."""

    @property
    def client_token(self) -> str:
        """What the device proves itself with after its first call."""
        ...

    def upload_name(self, slot: str) -> str:
        """Return the resource name of an upload.

        :param slot: a short word, one for each upload of an assignment, such as ``checkpoint``.
        """
        ...

    @property
    def forwarding(self) -> ForwardingInfo:
        """Where the protocol's own calls go."""
        ...

    @property
    def upload_forwarding(self) -> ForwardingInfo:
        """Where uploads go."""
        ...


@dataclass(frozen=True)
class Call:
    """A device called one of the protocol's methods for the first time.

    :param assignment: its id; at most one call of each method of an assignment waits at a time.
    :param method: the method's name in its service, such as ``SubmitAggregationResult``.
    :param request: the request; variables of the path are filled in.
    """

    assignment: str
    method: str
    request: Any
    tickets: Tickets


@dataclass(frozen=True)
class Upload:
    """A device uploaded bytes under a name that the protocol gave it.

    :param body: the bytes, if the protocol :attr:`reads uploads <AggregationProtocol.reads>`;
        otherwise None, and the bytes wait for :class:`Accumulate`.
    """

    assignment: str
    slot: str
    size: int
    body: bytes | bytearray | memoryview | None = None


@dataclass(frozen=True)
class Answer:
    """Answer a call that waits; a long-running one is done with this.

    :param response: the method's response (for a long-running call its operation's response), or
        an error.
    """

    assignment: str
    method: str
    response: Any


@dataclass(frozen=True)
class Pending:
    """Have a long-running call wait; devices poll until it is answered.

    :param metadata: the operation's metadata; its ``polling_interval``, if it has that field, must
        be set.
    """

    assignment: str
    method: str
    metadata: Any


@dataclass(frozen=True)
class Accumulate:
    """Have a checkpoint accumulated, for one assignment or for several at once.

    The outcome comes back through :meth:`AggregationProtocol.accumulated`, all or none.

    :param assignments: those whose contributions it holds.
    :param slot: the upload of the only assignment to take it from; its bytes are not kept.
    :param checkpoint: a checkpoint that the protocol computed, instead of an upload.
    :param parts: instead of one checkpoint, several that are a whole together: each intrinsic takes
        every one that has all its inputs, and must find one.
    """

    assignments: tuple[str, ...]
    slot: str | None = None
    checkpoint: bytes | None = None
    parts: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Keep:
    """Go on without some devices: what they contribute is in what will be accumulated.

    From then on a device that goes away, gives up or takes too long is not dropped; the protocol is
    notified by :meth:`AggregationProtocol.left` all the same, if the device says so. A later
    :class:`Accumulate` counts the assignment, a :class:`Drop` or the task's end drops it. What the
    core held of its uploads is released.
    """

    assignments: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """Give up a device: the error is its answer wherever it waits.

    :param phase: how far it came, a short word for counters and logs.
    :param late: whether the device did nothing wrong and is answered like all that come too late.
    """

    assignment: str
    phase: str
    code: Code
    message: str
    late: bool = False


@dataclass(frozen=True)
class Work:
    """Have heavy, pure work done by the engine, off the event loop.

    The outcome comes back through :meth:`AggregationProtocol.worked`.

    :param key: the protocol's own name for it.
    :param function: ``package.module:function``, which takes bytes and returns bytes.
    :param arguments: what it is called with.
    """

    key: str
    function: str
    arguments: bytes


Effect: TypeAlias = Answer | Pending | Accumulate | Keep | Drop | Work


@dataclass(frozen=True)
class ProtocolTask:
    """What a protocol knows of its task.

    :param aggregation: the serialized aggregation configuration.
    :param minimum_count: how many contributions are enough when the deadline comes.
    :param deadline: when the task ends by itself, in seconds.
    :param rng: the only source of randomness that it may use, but for secrets: those come from
        *secrets*.
    :param secrets: returns that many bytes which nobody can predict.
    :param over_selection: how many devices may be at work, as a multiple of the contributions that
        are missing.
    :param max_at_work: how many may be at work in any case; None: no such limit.
    """

    name: str
    population: str
    aggregation: bytes
    goal_count: int
    minimum_count: int
    deadline: float
    rng: random.Random = field(repr=False)
    secrets: Callable[[int], bytes] = field(repr=False)
    over_selection: float = 1.0
    max_at_work: int | None = None


class AggregationProtocol(ABC):
    """How the contributions of one task come in. Every method that takes *now* may return effects.

    :cvar concluding: the methods whose OK tells a device that its contribution counts.
    :cvar reads: whether :class:`Upload` events carry the bytes.
    :cvar resumable: whether a device can go on whose earlier calls the machine knows nothing of,
        since the server was restarted in between.
    :ivar together: how many devices must be at work at a time for any to contribute. While
        contributions are missing, the task gives places to so many, though fewer are missing; its
        ``max_at_work`` holds all the same. Set it in :meth:`start`.
    """

    together: int = 1
    concluding: ClassVar[Collection[str]] = ()
    reads: ClassVar[bool] = False
    resumable: ClassVar[bool] = False

    def start(self, task: ProtocolTask, now: float) -> Sequence[Effect]:
        """Begin; called once, before any device is assigned."""
        return ()

    def describe(self, assignment: TaskAssignment) -> None:
        """Fill in the protocol's part of an assignment: one of ``aggregation_type``."""
        assignment.aggregation_info.SetInParent()

    @abstractmethod
    def receive(self, call: Call, now: float) -> Sequence[Effect]:
        """Handle a call.

        :raises StatusError: to answer that; the device may call again.
        """

    @abstractmethod
    def uploaded(self, upload: Upload, now: float) -> Sequence[Effect]:
        """Handle an upload that is complete."""

    @abstractmethod
    def accumulated(
        self, assignments: Sequence[str], error: StatusError | None, now: float
    ) -> Sequence[Effect]:
        """Handle the outcome of :class:`Accumulate`.

        :param error: None: the assignments are counted; otherwise they are dropped.
        """

    def worked(self, key: str, result: bytes | StatusError, now: float) -> Sequence[Effect]:
        """Handle the outcome of :class:`Work`."""
        return ()

    def left(self, assignment: str, code: Code, now: float) -> Sequence[Effect]:
        """Forget a device that had called and is gone: it gave up, failed, or took too long."""
        return ()

    def tick(self, now: float) -> Sequence[Effect]:
        """Do what is due."""
        return ()

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` must be called next, or None."""
        return None

    def notes(self) -> Sequence[str]:
        """Return what whoever watches the task should know of the protocol, a short line each."""
        return ()


@dataclass(frozen=True)
class AggregationProtocolFactory:
    """What a plugin registers: a recipe for protocol machines, chosen by *name*.

    :param make: called with the protocol's options, once for each task.
    :param services: full names of the protobuf services whose calls it serves; their routes are
        those of their ``google.api.http`` annotations.
    :param aborting: the methods with which a device gives up: the core drops the assignment, calls
        :meth:`AggregationProtocol.left`, and answers with an empty response.
    :param files: descriptors of the files that declare them, if those are the plugin's own.
    :param check: says what is wrong with a task for this protocol, given its options: sentences.
    :param late: how a device is answered that comes too late, so that it goes on to its end:
        returns the method's response, or None for the core's answer; raises StatusError for a call
        that is wrong at any time. The task may be one that the server does not know any more.
    :param aggregators: which aggregators serve the intrinsics of its tasks, by intrinsic URI, where
        neither the configuration nor the task chooses one.
    :param device: makes the device's side (``fcp_core.client.protocols.DeviceProtocol``); None: any
        device that speaks the plain protocol takes part.
    """

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], AggregationProtocol]
    services: Sequence[str] = ()
    aborting: Collection[str] = ()
    files: Sequence[Any] = ()
    check: Callable[[TaskSpec, Mapping[str, Any]], Sequence[str]] | None = None
    late: Callable[[Call], Any] | None = None
    aggregators: Mapping[str, str] = field(default_factory=dict)
    device: Callable[[], Any] | None = None


#: A body of an upload as the core keeps it until it is accumulated or dropped.
Body: TypeAlias = "bytes | bytearray | memoryview | HeldBody"
