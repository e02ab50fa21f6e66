"""The engine kit catches engines that are broken on purpose, law by law."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from fcp_core.aggregation.engine import Engine, EngineFactory, Fold, Partial
from fcp_core.aggregation.local import LocalEngine
from fcp_core.protocol.status import StatusError
from fcp_core.testing import EngineConformance


def done(result):
    future = Future()
    future.set_result(result)
    return future


class Good(Engine):
    """The built-in engine, of which all others here are spoilt versions."""

    def __init__(self, factories, options):
        self.local = LocalEngine(factories, workers=2)

    def start(self):
        self.local.start()

    def stop(self):
        self.local.stop()

    def open(self, job, partials=()):
        return Wrapped(self.local.open(job, partials))


class Wrapped(Fold):
    def __init__(self, fold):
        self.fold = fold

    def add(self, contribution, blob):
        return self.fold.add(contribution, blob)

    def merge(self, partial):
        return self.fold.merge(partial)

    def partial(self):
        return self.fold.partial()

    def report(self, checkpoint_format="tf_v1"):
        return self.fold.report(checkpoint_format)

    def abort(self):
        self.fold.abort()


def spoilt(**methods):
    """Return an engine whose folds have these methods instead."""
    fold_class = type("Spoilt", (Wrapped,), methods)

    class Spoilt(Good):
        def open(self, job, partials=()):
            return fold_class(self.local.open(job, partials))

    return Spoilt


def add_refuses_nothing(self, contribution, blob):
    future = self.fold.add(contribution, blob)
    return done(None) if future.exception() else future


def add_without_ids(self, contribution, blob):
    """Makes every id its own."""
    self.count = getattr(self, "count", 0) + 1
    return self.fold.add(f"{contribution}/{self.count}", blob)


def add_keeps_the_id(self, contribution, blob):
    """A refused contribution may not come again."""
    self.seen = getattr(self, "seen", set())
    if contribution in self.seen:
        return self.fold.add("0", blob)
    self.seen.add(contribution)
    return self.fold.add(contribution, blob)


def add_late(self, contribution, blob):
    """Folds when it is asked for the report, and reads the blob then."""
    self.late = [*getattr(self, "late", []), (contribution, blob)]
    return done(None)


def partial_late(self):
    for contribution, blob in self.__dict__.pop("late", []):
        self.fold.add(contribution, blob).exception()
    return self.fold.partial()


def report_late(self, checkpoint_format="tf_v1"):
    partial_late(self)
    return self.fold.report(checkpoint_format)


def report_one_format(self, checkpoint_format="tf_v1"):
    return self.fold.report("tf_v1")


def report_hasty(self, checkpoint_format="tf_v1"):
    """Leaves out whatever came after the eighth."""
    if len(self.fold._ids) <= 12:
        return self.fold.report(checkpoint_format)
    return self.fold.report("nonsense")


def merge_forgets_ids(self, partial):
    return self.fold.merge(Partial(partial.data, ()))


def merge_keeps_ids(self, partial):
    future = self.fold.merge(partial)
    if future.exception():
        self.fold._ids.update(partial.contributions)
    return future


def merge_takes_twice(self, partial):
    """Adds a partial that shares a contribution, under other ids."""
    future = self.fold.merge(partial)
    if not future.exception():
        return future
    return self.fold.merge(Partial(partial.data, tuple(f"{c}+" for c in partial.contributions)))


def absorb_forgets_ids(self, finished):
    return Wrapped.absorb(self, replace(finished, contributions=()))


def view_forgets_ids(self):
    return done(replace(Wrapped.view(self).result(), contributions=()))


def partial_drops_one(self):
    partial = self.fold.partial().result()
    return done(Partial(partial.data, partial.contributions[1:]))


def partial_finishes(self):
    future = self.fold.partial()
    future.exception()
    self.fold.abort()
    return future


def abort_nothing(self):
    pass


def report_stays_open(self, checkpoint_format="tf_v1"):
    partial = self.fold.partial().result()
    future = self.fold.report(checkpoint_format)
    self.fold._closed, self.fold._aborted = None, False
    self.fold._when_idle = None
    future.exception()
    self.partial = lambda: done(partial)
    return future


def partial_unlocked(self):
    """Has a look at a moment when the numbers and the names do not fit together."""
    partial = self.fold.partial().result()
    names = tuple(self.fold._ids) if partial.contributions else ()
    return done(Partial(partial.data, (*partial.contributions, *names[:1])))


class CannotStop(Good):
    def stop(self):
        pass


class CheckedLate(Good):
    """Opens anything, and fails when the first device contributes."""

    def open(self, job, partials=()):
        try:
            return super().open(job, partials)
        except StatusError:
            return Wrapped(None)


class Unbounded(Good):
    def open(self, job, partials=()):
        return super().open(replace(job, max_kept_bytes=1 << 30), partials)


class SharesIds(Good):
    """Keeps one fold for all sessions."""

    def open(self, job, partials=()):
        if not hasattr(self, "only"):
            self.only = super().open(job, partials)
        return self.only


#: Runs a job in a process of its own: its name as an argument, bytes in, its outcome out.
CHILD = """
import pickle, sys
from fcp_core.aggregation.engine import call_by_name
try:
    outcome = call_by_name(sys.argv[1], sys.stdin.buffer.read())
except Exception as error:
    outcome = error
sys.stdout.buffer.write(pickle.dumps(outcome))
"""


class InProcesses(Good):
    """Runs each job in a process of its own, again if that dies."""

    again = True

    def __init__(self, factories, options):
        super().__init__(factories, options)
        self.pool = ThreadPoolExecutor()

    def run(self, function, arguments):
        return self.pool.submit(self.work, function, arguments)

    def work(self, function, arguments):
        command = [sys.executable, "-c", CHILD, function]
        done = subprocess.run(command, input=arguments, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            return self.work(function, arguments) if self.again else b""
        outcome = pickle.loads(done.stdout)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def closed(self):
        self.pool.shutdown()

    def stop(self):
        super().stop()
        return self.closed()


class ForgetsJobs(InProcesses):
    """Takes a job whose process died for one that returned nothing."""

    again = False


class ForgetsFolds(InProcesses):
    """Keeps what was accumulated where the last job ran."""

    def open(self, job, partials=()):
        engine = self

        class Fold(Wrapped):
            def report(self, checkpoint_format="tf_v1"):
                fold = self.fold if not engine.ran else engine.local.open(job)
                return fold.report(checkpoint_format)

        self.ran = False
        return Fold(self.local.open(job, partials))

    def run(self, function, arguments):
        self.ran = True
        return super().run(function, arguments)


class RunsNothing(Good):
    def run(self, function, arguments):
        return done(arguments)


BROKEN = [
    ("test_the_factory_describes_itself", Good, {"summary": ""}, ()),
    ("test_a_fold_equals_a_plain_loop", spoilt(add=add_refuses_nothing), {}, ()),
    ("test_a_fold_equals_a_plain_loop", spoilt(add=add_without_ids), {}, ()),
    ("test_a_report_comes_in_either_format", spoilt(report=report_one_format), {}, ()),
    ("test_what_was_added_before_is_in_the_report", spoilt(report=report_hasty), {}, ()),
    ("test_partials_merge_to_the_whole", spoilt(merge=merge_forgets_ids), {}, ()),
    ("test_partials_merge_to_the_whole", spoilt(partial=partial_drops_one), {}, ()),
    ("test_a_partial_goes_on_elsewhere", spoilt(partial=partial_finishes), {}, ()),
    ("test_a_contribution_counts_once", spoilt(add=add_without_ids), {}, ()),
    ("test_a_contribution_counts_once", spoilt(merge=merge_takes_twice), {}, ()),
    ("test_a_refused_contribution_changes_nothing", spoilt(add=add_keeps_the_id), {}, ("empty",)),
    (
        "test_a_refused_contribution_changes_nothing",
        spoilt(add=add_refuses_nothing),
        {},
        ("no tensor",),
    ),
    ("test_a_broken_partial_changes_nothing", spoilt(merge=merge_keeps_ids), {}, ()),
    ("test_kept_bytes_are_bounded", Unbounded, {}, ()),
    (
        "test_a_blob_may_be_used_again",
        spoilt(add=add_late, partial=partial_late, report=report_late),
        {},
        (),
    ),
    ("test_after_the_report_everything_is_aborted", spoilt(report=report_stays_open), {}, ()),
    ("test_what_finished_folds_hold_is_absorbed", spoilt(absorb=absorb_forgets_ids), {}, ()),
    ("test_what_finished_folds_hold_is_absorbed", spoilt(view=view_forgets_ids), {}, ()),
    ("test_after_an_abort_everything_is_aborted", spoilt(abort=abort_nothing), {}, ()),
    ("test_stopping_aborts_what_is_open", CannotStop, {}, ()),
    ("test_a_job_that_cannot_run_is_refused", CheckedLate, {}, ()),
    ("test_folds_do_not_mix", SharesIds, {}, ()),
    ("test_a_job_is_a_function_of_bytes", RunsNothing, {}, ()),
    ("test_a_job_survives_the_process_that_runs_it", ForgetsJobs, {}, ()),
    ("test_a_report_survives_the_process_that_jobs_run_in", ForgetsFolds, {}, ()),
    ("test_many_threads_contribute", spoilt(add=add_without_ids), {}, ()),
    ("test_many_threads_contribute", spoilt(partial=partial_unlocked), {}, ()),
]


def kit(make, **changes):
    fields = {"name": "good", "summary": "folds", "make": make}

    class Laws(EngineConformance):
        factory = EngineFactory(**(fields | changes))
        shrink = False
        derandomize = True
        expendable = True
        timeout = 30.0

    return Laws()


class TestGood(EngineConformance):
    """The laws hold for the wrapped one, or what follows would prove nothing."""

    factory = EngineFactory("good", "folds", Good)


@pytest.mark.slow
class TestGoodInProcesses(EngineConformance):
    """It starts and stops in its own time, and its jobs survive."""

    factory = EngineFactory("good", "folds", InProcesses)
    expendable = True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "make", "changes", "arguments"),
    BROKEN,
    ids=[f"{number}-{row[0]}" for number, row in enumerate(BROKEN)],
)
def test_the_engine_kit_catches(law, make, changes, arguments):
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(kit(make, **changes), law)(*arguments)


def test_every_engine_law_has_a_broken_engine():
    laws = {name for name in dir(EngineConformance) if name.startswith("test_")}
    assert {law for law, *_ in BROKEN} == laws
