"""Folds that lie in several processes, here with the processes' parts on one event loop."""

import asyncio
import dataclasses
import socket
import threading
from concurrent.futures import Future

import pytest

from fcp_core.aggregation.engine import Engine, EngineFactory, Fold
from fcp_core.aggregation.local import LocalEngine
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code
from fcp_core.server.processes.folds import WorkerFolds
from fcp_core.server.processes.link import Link
from fcp_core.server.processes.process_engine import ProcessEngine
from fcp_core.server.processes.remote_upload import RemoteUpload
from fcp_core.testing.engines import AGGREGATORS, JOB, EngineConformance, blob

WAIT = 30.0


class Worker:
    """A worker without its process."""

    def __init__(self, engine, whole):
        self.engine = engine
        self.folds = WorkerFolds(engine)
        handlers = {
            name: getattr(self.folds, name)
            for name in ("open_fold", "fold", "partial", "piece", "drop_fold", "drop_body")
        }
        self.link = Link(handlers, lambda: None)
        self.remote = Link({}, lambda: whole.lost(self.remote))

    async def start(self):
        self.engine.start()
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.create_unix_connection(lambda: self.link, sock=theirs)
        await loop.create_unix_connection(lambda: self.remote, sock=ours)

    def body(self, data):
        return RemoteUpload(self.remote, self.folds.keep(data), len(data))

    async def stop(self):
        self.link.close()
        self.remote.close()
        self.engine.stop()


class SeveralProcesses(Engine):
    """An engine of two processes, or three, with an event loop of its own."""

    def __init__(self, factories, options):
        self.engine = ProcessEngine(LocalEngine(factories, 1, 0), 2)
        self.factories = factories
        self.workers = []

    def run(self, function, arguments):
        return self.engine.run(function, arguments)

    def wait_for(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT)

    def start(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

        async def begin():
            self.engine.start()
            self.workers = [Worker(LocalEngine(self.factories, 1), self.engine) for _ in range(2)]
            for worker in self.workers:
                await worker.start()

        self.wait_for(begin())

    def stop(self):
        async def end():
            self.engine.stop()
            for worker in self.workers:
                await worker.stop()
            await asyncio.sleep(0)

        if not self.loop.is_closed():
            self.wait_for(end())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(WAIT)
            self.loop.close()

    def open(self, job, partials=()):
        return Dealt(self, self.engine.open(job, partials))


class Dealt(Fold):
    """Has two processes in turn receive a contribution."""

    def __init__(self, engine, fold):
        self.engine = engine
        self.fold = fold
        self.count = 0

    def add(self, contribution, blob):
        self.count += 1
        if self.count % 2:
            return self.fold.add(contribution, blob)
        worker = self.engine.workers[0]
        return self.fold.add_held(contribution, worker.body(blob))

    def merge(self, partial):
        return self.fold.merge(partial)

    def partial(self):
        return self.fold.partial()

    def report(self, checkpoint_format="tf_v1"):
        return self.fold.report(checkpoint_format)

    def abort(self):
        self.fold.abort()


class TestProcessEngine(EngineConformance):
    factory = EngineFactory("processes", "folds in two processes", SeveralProcesses)


@pytest.fixture
def processes():
    engine = SeveralProcesses(AGGREGATORS, {})
    engine.start()
    yield engine
    engine.stop()


def code_of(future):
    error = future.exception(WAIT)
    return Code.OK if error is None else error.code


def total(future):
    return open_checkpoint(future.result(WAIT))["sum"].tolist()


def test_a_report_waits_for_what_was_added_before(processes):
    fold = processes.engine.open(JOB)
    adding = [fold.add_held(str(n), processes.workers[n % 2].body(blob(n))) for n in range(8)]
    adding += [fold.add(str(n), blob(n)) for n in range(8, 12)]
    report = fold.report()
    assert total(report) == [111_111_111_111, 12]
    assert {code_of(future) for future in adding} == {Code.OK}
    assert [worker.folds.held for worker in processes.workers] == [0, 0]


@pytest.mark.parametrize("kept", [1 << 20, 96], ids=["room in one", "room in all together"])
def test_what_every_process_has_is_in_partials_and_in_the_report(processes, kept):
    """Also if one process may not keep what all of them do; then it is merged elsewhere."""
    fold = processes.engine.open(dataclasses.replace(JOB, max_kept_bytes=kept))
    places = [None, *processes.workers]
    for number in range(6):
        worker, data = places[number % 3], blob(number)
        if worker is None:
            added = fold.add(str(number), data)
        else:
            added = fold.add_held(str(number), worker.body(data))
        assert code_of(added) is Code.OK
        partial = fold.partial().result(WAIT)
        assert sorted(partial.contributions) == [str(done) for done in range(number + 1)]
        again = processes.engine.open(JOB, [partial])
        assert total(again.report()) == [int("1" * (number + 1)), number + 1]
    report = open_checkpoint(fold.report().result(WAIT))
    assert report["sum"].tolist() == [111_111, 6]
    assert sorted(report["all"].tolist()) == [10**number for number in range(6)]


def test_one_contribution_counts_once_wherever_it_comes(processes):
    fold = processes.engine.open(JOB)
    first, second = processes.workers
    assert code_of(fold.add_held("a", first.body(blob(0)))) is Code.OK
    assert code_of(fold.add_held("a", second.body(blob(0)))) is Code.ALREADY_EXISTS
    assert code_of(fold.add("a", blob(0))) is Code.ALREADY_EXISTS
    # A refused one may come again, at another process.
    assert code_of(fold.add_held("b", first.body(b"nonsense"))) is Code.INVALID_ARGUMENT
    assert code_of(fold.add_held("b", second.body(blob(1)))) is Code.OK
    assert total(fold.report()) == [11, 2]
    processes.wait_for(first.remote.call("drop_fold", 0))
    assert [worker.folds.held for worker in processes.workers] == [0, 0]


def fails():
    raise RuntimeError("planted")


def cancelled():
    future = Future()
    future.cancel()
    return future


@pytest.mark.parametrize("begin", [fails, lambda: None, cancelled])
def test_an_engine_that_begins_nothing_keeps_no_report(processes, begin):
    fold = processes.engine.open(JOB)
    local = fold._local
    working = local.add
    local.add = lambda *arguments: begin()
    assert fold.add("a", blob(0)).exception(WAIT) is not None
    local.add = working
    # Its id is free again.
    assert code_of(fold.add("a", blob(1))) is Code.OK
    assert total(fold.report()) == [10, 1]


def test_a_fold_that_lost_something_says_so_once(processes):
    fold = processes.engine.open(JOB)
    told = []
    heard = threading.Event()
    fold.on_loss(lambda why: (told.append(why), heard.set()))
    first, second = processes.workers
    assert code_of(fold.add_held("a", first.body(blob(0)))) is Code.OK
    lost = first.body(blob(1))
    processes.wait_for(second.stop())  # it has nothing of this fold
    processes.wait_for(first.stop())
    assert heard.wait(WAIT)
    assert told == ["a process of the server ended that had folded 1 of them"]
    assert code_of(fold.add_held("b", lost)) is Code.ABORTED
    assert code_of(fold.report()) is Code.ABORTED


def test_a_process_that_had_nothing_is_no_loss(processes):
    fold = processes.engine.open(JOB)
    told = []
    fold.on_loss(told.append)
    first, _ = processes.workers
    assert code_of(fold.add("a", blob(0))) is Code.OK
    assert code_of(fold.add_held("b", first.body(b"nonsense"))) is Code.INVALID_ARGUMENT
    lost = first.body(blob(1))
    processes.wait_for(first.stop())
    assert code_of(fold.add_held("b", lost)) is Code.UNAVAILABLE
    assert code_of(fold.add("b", blob(2))) is Code.OK
    assert total(fold.report()) == [101, 2]
    assert told == []


def test_a_fold_that_was_aborted_is_dropped_everywhere(processes):
    fold = processes.engine.open(JOB)
    first, _ = processes.workers
    assert code_of(fold.add_held("a", first.body(blob(0)))) is Code.OK
    assert len(first.folds._folds) == 1
    fold.abort()
    late = fold.add_held("b", first.body(blob(1)))
    assert code_of(late) is Code.ABORTED
    processes.wait_for(first.remote.call("drop_body", 0))  # after the calls before it
    assert first.folds._folds == {}
    assert first.folds.held == 0


def test_processes_share_what_may_be_kept(processes):
    """The sum of what they keep can be merged in the end."""
    engine = ProcessEngine(LocalEngine(AGGREGATORS, 0), 4)

    async def kept(goal=0):
        engine.start()
        return engine.open(dataclasses.replace(JOB, goal_count=goal))._job.max_kept_bytes

    assert processes.wait_for(kept()) == JOB.max_kept_bytes // 4
    # A goal that may be kept as a whole may come to one process.
    assert processes.wait_for(kept(goal=3)) == JOB.max_kept_bytes


def test_other_engines_fold_what_is_here_only():
    engine = LocalEngine(AGGREGATORS, 0)
    engine.start()
    with pytest.raises(NotImplementedError):
        engine.open(JOB).add_held("a", RemoteUpload(None, 1, 1))
    engine.stop()


def test_an_outcome_that_nobody_waits_for_any_more_does_no_harm():
    """Seen in the simulation: a server that ended had cancelled a merge."""

    async def main():
        engine = ProcessEngine(LocalEngine(AGGREGATORS, workers=0), 2)
        engine.start()
        fold = engine.open(JOB)
        future = fold.partial()
        assert not future.cancel()
        assert (await asyncio.wrap_future(future)).contributions == ()
        fold.abort()
        engine.stop()

    asyncio.run(main())
