"""The contract of an engine: where accumulators run.

An engine is given names, options and bytes and gives back serialized partials, so that the same
work runs on local threads, in other processes or on a cluster.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.protocol.status import Code, StatusError

#: The two checkpoint formats of a result.
CheckpointFormat = Literal["tf_v1", "federated_compute"]


@dataclass(frozen=True)
class FoldJob:
    """What a fold accumulates, and how; picklable.

    :param configuration: a serialized ``tensorflow_federated.aggregation.Configuration``.
    :param aggregators: which aggregator serves which intrinsic URI, by name; a URI that is not
        listed is served by the aggregator that carries its name.
    :param options: the options of each aggregator, by the aggregator's name.
    :param max_kept_bytes: how many bytes an aggregator that needs all inputs may keep.
    :param goal_count: how many contributions are to come; 0: that is not known.
    """

    configuration: bytes
    aggregators: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_kept_bytes: int = 1 << 30
    goal_count: int = 0


@dataclass(frozen=True)
class Partial:
    """A partial aggregate and the contributions it holds.

    :param data: a serialized ``CheckpointAggregatorState``.
    :param contributions: ids of the contributions in it, each exactly once.
    """

    data: bytes
    contributions: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """What a fold holds that takes no more.

    :param contributions: ids of the contributions in it, each exactly once.
    :param pieces: a serialized ``CheckpointAggregatorState``, in pieces. They may be views on what
        it is; once a fold has absorbed that and goes on, they are of no use any more.
    :param aggregate: the same, for the engine that made it; None: there is nothing but the pieces.
    """

    contributions: tuple[str, ...]
    pieces: Sequence[bytes | memoryview]
    aggregate: Any = None

    @property
    def nbytes(self) -> int:
        """The size of the pieces together, in bytes."""
        return sum(map(len, self.pieces))


class HeldBody(ABC):
    """A checkpoint in the memory of another process of this server, which accumulates it there.

    :ivar helper: the member of the server that it is at, if that stores what it accumulates.
    """

    helper: Any = None

    @abstractmethod
    def __len__(self) -> int:
        """Return its size in bytes."""

    @abstractmethod
    def drop(self) -> None:
        """Forget it: it will not be accumulated."""

    @abstractmethod
    async def fetch(self) -> bytes:
        """Bring it into this process; it is dropped where it was.

        :raises StatusError: ABORTED if the other process has lost it.
        """

    async def contribute(self, stream: str, contribution: str, counts: Sequence[int]) -> None:
        """Have its helper accumulate it, and return when that is stored.

        :param stream: the shards that it is one of.
        :param counts: the numbers of devices that were dropped and that came too late.
        :raises StatusError: what the helper says; UNAVAILABLE if it was lost on its way.
        """
        raise NotImplementedError


class Fold(ABC):
    """The accumulators of one task. All methods are thread-safe.

    A future fails with StatusError: INVALID_ARGUMENT or NOT_FOUND for a contribution that does not
    fit, ALREADY_EXISTS for one that is in the fold already, RESOURCE_EXHAUSTED if it would have to
    be kept and there is no room (nothing was changed, and its id is free again), ABORTED once the
    fold has reported or was aborted. It fails with DATA_LOSS once an aggregator has failed in a way
    that leaves the aggregate wrong: the task ends then, and the message is its error.
    """

    @abstractmethod
    def add(self, contribution: str, blob: bytes | bytearray | memoryview) -> Future[None]:
        """Accumulate one checkpoint; the blob is not kept after the future is done.

        :param blob: a memoryview that can be written is handed over: if the contribution is taken,
            the fold may change it and keep it.
        """

    def add_group(self, contributions: Sequence[str], *blobs: bytes) -> Future[None]:
        """Accumulate what several devices contributed; all count, or none.

        Only aggregation protocols that aggregate before the engine does ask for it.

        :param blobs: one checkpoint, or several that are a whole together: each intrinsic takes
            every one that has all its inputs, and must find one (:func:`fold.whole_of`).
        """
        raise NotImplementedError(f"{type(self).__name__} folds single contributions only")

    def add_held(self, contribution: str, body: HeldBody) -> Future[None]:
        """Accumulate one checkpoint where it lies.

        Only a server of several processes asks for it, and of its own engine.
        """
        raise NotImplementedError(f"{type(self).__name__} folds what is in this process only")

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Call *callback* with the reason, from any thread, if contributions in the fold are lost.

        It is called once, and never after the report or :meth:`abort`. A fold that has lost some
        takes no more. Most folds cannot lose any without the whole process.
        """

    @abstractmethod
    def merge(self, partial: Partial) -> Future[None]:
        """Add a partial aggregate, for instance one from storage after a restart."""

    def absorb(self, finished: Finished) -> Future[None]:
        """Add what another fold of the same job and engine held; it may be absorbed once."""
        return self.merge(Partial(b"".join(finished.pieces), finished.contributions))

    @abstractmethod
    def partial(self) -> Future[Partial]:
        """Return what has been accumulated so far; the fold may go on."""

    def view(self) -> Future[Finished]:
        """Return what has been accumulated; its pieces are of use until the fold goes on.

        Nothing may be accumulating.
        """
        future: Future[Finished] = Future()
        # Whoever does not wait any more must not take the outcome's place.
        future.set_running_or_notify_cancel()

        def done(inner: Future[Partial]) -> None:
            try:
                partial = inner.result()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(Finished(partial.contributions, (partial.data,)))

        self.partial().add_done_callback(done)
        return future

    def finish(self) -> Future[Finished]:
        """Return what has been accumulated, and take no more.

        Nothing may be accumulating. The fold must be aborted afterwards.
        """
        return self.view()

    @abstractmethod
    def report(self, checkpoint_format: CheckpointFormat = "tf_v1") -> Future[bytes]:
        """Finish and return the aggregate as a checkpoint.

        Every contribution that was added before is in it, or its future fails.
        """

    @abstractmethod
    def abort(self) -> None:
        """Finish and drop everything."""


class Engine(ABC):
    """Runs folds and jobs. Made by an :class:`EngineFactory`, started and stopped by the server."""

    def start(self) -> Awaitable[None] | None:
        """Take threads, processes or connections; called on an event loop.

        What takes long must not block the loop: return something to await, which the server does
        before it opens a fold. The engine must not need that loop afterwards.

        :raises UsageError: if it cannot start, in the operator's words; or what is awaited does.
        """
        return None

    def stop(self) -> Awaitable[None] | None:
        """Give them back; folds and jobs still open are aborted. May return something to await."""
        return None

    def run(self, function: str, arguments: bytes) -> Future[bytes]:
        """Run a pure function somewhere else than on the event loop.

        It may run more than once, if what ran it is lost; one result comes back. To cancel the
        future is to say that nobody wants it any more.

        :param function: ``package.module:name``, of bytes that returns bytes.
        """
        global _threads
        if _threads is None:
            _threads = ThreadPoolExecutor(thread_name_prefix="fcp-work")
        return _threads.submit(call_by_name, function, arguments)

    @abstractmethod
    def open(self, job: FoldJob, partials: Sequence[Partial] = ()) -> Fold:
        """Begin a fold, with *partials* already in it.

        :raises StatusError: INVALID_ARGUMENT if the configuration is not usable; the message names
            the intrinsic and what is wrong with it.
        """


async def start_engine(engine: Engine) -> None:
    """Start an engine, and wait until it has.

    :raises UsageError: as :meth:`Engine.start` does.
    """
    started = engine.start()
    if started is not None:
        await started


async def stop_engine(engine: Engine) -> None:
    """Stop an engine, and wait until it has."""
    stopped = engine.stop()
    if stopped is not None:
        await stopped


class NotInstalledError(StatusError):
    """What a job needs is not there in the process that runs it; it may be in another one."""

    def __reduce__(self) -> tuple[object, ...]:
        """Stay what it is on the trip from that process."""
        return (NotInstalledError, (self.code, self.message))


#: Where engines that bring no threads of their own run functions.
_threads: ThreadPoolExecutor | None = None


def call_by_name(function: str, arguments: bytes) -> bytes:
    """Call a function named ``package.module:name``.

    :raises NotInstalledError: INTERNAL if there is none of that name.
    """
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"there is no function {function!r}: {error}"
        raise NotInstalledError(Code.INTERNAL, message) from error
    result: bytes = found(arguments)
    return result


@dataclass(frozen=True)
class EngineFactory:
    """What a plugin registers: a recipe for an engine, chosen by *name*.

    :param make: called with the aggregator factories by name and the engine's own options.
    """

    name: str
    summary: str
    make: Callable[[Mapping[str, AggregatorFactory], Mapping[str, Any]], Engine]
