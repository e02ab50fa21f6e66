"""The conformance kit of engines: subclass, name a factory, run with pytest.

An example, complete::

    class TestCluster(EngineConformance):
        factory = my_plugin.CLUSTER
        options = {"workers": 2}

The kit folds with two aggregators of its own, which any process can import: ``kit_sum`` adds, and
``kit_all`` keeps every number. What comes out is compared with a plain loop. With ``expendable``,
the kit kills processes that the engine's jobs run in, and still wants what was asked of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import (
    Engine,
    Fold,
    FoldJob,
    Partial,
    start_engine,
    stop_engine,
)
from fcp_core.aggregation.fold import fold as fold_sequentially
from fcp_core.aggregation.fold import report_partial
from fcp_core.aggregation.spec import Intrinsic, Tensor
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.engine_aggregators import AGGREGATORS, ALL, SUM
from fcp_core.testing.job_laws import JOBS, JobLaws
from fcp_core.testing.kit import pytest
from fcp_core.testing.laws import applies_if

__all__ = ["AGGREGATORS", "JOB", "KINDS", "SUM_JOB", "EngineConformance", "blob", "uploads"]

#: Adds up; keeps nothing.
SUM_JOB = FoldJob(configuration_to_proto([SUM]).SerializeToString())
#: Adds up and keeps every number.
JOB = FoldJob(configuration_to_proto([SUM, ALL]).SerializeToString())

#: The names of what a device may send.
KINDS = ("good", "empty", "truncated", "no tensor", "wrong dtype", "wrong shape", "wrong value")


def blob(number: int, kind: str = "good") -> bytes:
    """Return what a device sends.

    :param number: its own number, below 15: a decimal digit of the sum, so that the sum tells which
        contributions are in it, and how often.
    """
    numbers: Tensor = np.array([10**number, 1], np.int64)
    if kind == "empty":
        return b""
    if kind == "no tensor":
        return write_checkpoint({"w": numbers}, "tf_v1")
    if kind == "wrong dtype":
        numbers = numbers.astype(np.float64)
    elif kind == "wrong shape":
        numbers = numbers[:1]
    elif kind == "wrong value":
        numbers[1] = -1
    data = write_checkpoint({"v": numbers}, "tf_v1" if number % 2 else "federated_compute")
    return data[: len(data) // 2] if kind == "truncated" else data


def uploads() -> st.SearchStrategy[list[tuple[int, str]]]:
    """Draw what devices send: their numbers, some of them twice, and kinds."""
    kinds = st.just("good") | st.sampled_from(KINDS)
    return st.lists(st.tuples(st.integers(0, 9), kinds), max_size=12)


class EngineConformance(JobLaws):
    """The laws of :mod:`fcp_core.aggregation.engine`, checked for one factory."""

    #: How many threads contribute at a time.
    threads: ClassVar[int] = 4

    def test_the_factory_describes_itself(self) -> None:
        """It has a name, a summary in one line, and makes engines."""
        assert self.factory.name
        assert self.factory.summary
        assert "\n" not in self.factory.summary
        assert isinstance(self.factory.make(AGGREGATORS, self.options), Engine)

    def test_a_fold_equals_a_plain_loop(self) -> None:
        """The aggregate, and why a contribution was refused, are those of a sequential fold."""
        with self.engine() as engine:

            def law(sent: list[tuple[int, str]]) -> None:
                blobs = [(str(number), blob(number, kind)) for number, kind in sent]
                folding = engine.open(JOB)
                accepted: dict[str, bytes] = {}
                for name, data in blobs:
                    code = self._code(folding.add(name, data))
                    _, refused = fold_sequentially(
                        AGGREGATORS, JOB, [*accepted.items(), (name, data)]
                    )
                    assert code is (refused[name].code if name in refused else Code.OK)
                    if code is Code.OK:
                        accepted[name] = data
                expected, _ = fold_sequentially(AGGREGATORS, JOB, accepted.items())
                assert self._numbers(folding.report()) == _read(
                    report_partial(AGGREGATORS, JOB, expected)
                )

            self.check(law, uploads())

    def test_a_report_comes_in_either_format(self) -> None:
        """The caller says which; a report of nothing is one too."""
        with self.engine() as engine:
            for checkpoint_format in ("tf_v1", "federated_compute"):
                data = self._wait(engine.open(SUM_JOB).report(checkpoint_format))
                assert _read(data) == {"sum": [0, 0]}
                assert data.startswith(b"FCv1") == (checkpoint_format == "federated_compute")

    def test_what_was_added_before_is_in_the_report(self) -> None:
        """Nobody has to wait for the futures first."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            futures = [folding.add(str(number), blob(number)) for number in range(15)]
            report = folding.report()
            assert [self._code(future) for future in futures] == [Code.OK] * 15
            assert self._numbers(report)["sum"] == [int("1" * 15), 15]

    def test_partials_merge_to_the_whole(self) -> None:
        """Contributions split over folds, whose partials are merged in any order, equal one."""
        with self.engine() as engine:

            def law(shares: list[int], reverse: bool) -> None:
                folds = [engine.open(JOB) for _ in range(3)]
                for number, share in enumerate(shares):
                    self._wait(folds[share].add(str(number), blob(number)))
                partials = [self._wait(folding.partial()) for folding in folds]
                first, *others = partials[::-1] if reverse else partials
                whole = engine.open(JOB, [first])
                for other in others:
                    self._wait(whole.merge(other))
                merged = self._wait(whole.partial())
                assert sorted(merged.contributions) == sorted(map(str, range(len(shares))))
                assert self._numbers(whole.report()) == _total(range(len(shares)))
                for folding in folds:
                    folding.abort()

            self.check(law, st.lists(st.integers(0, 2), max_size=10), st.booleans())

    def test_what_finished_folds_hold_is_absorbed(self) -> None:
        """Contributions split over folds that finish, each absorbed by another one, equal one."""
        with self.engine() as engine:

            def law(shares: list[int]) -> None:
                whole = engine.open(JOB)
                for share in range(3):
                    folding = engine.open(JOB)
                    mine = [number for number, at in enumerate(shares) if at == share]
                    for number in mine:
                        self._wait(folding.add(str(number), blob(number)))
                    finished = self._wait(folding.finish())
                    assert sorted(finished.contributions) == sorted(map(str, mine))
                    before = b"".join(finished.pieces)
                    self._wait(whole.absorb(finished))
                    if finished.contributions:
                        assert self._code(whole.absorb(finished)) is Code.ALREADY_EXISTS
                    folding.abort()
                    assert b"".join(finished.pieces) == before, "nobody changes the pieces"
                    seen = self._wait(whole.view())
                    taken = [number for number, at in enumerate(shares) if at <= share]
                    assert sorted(seen.contributions) == sorted(map(str, taken))
                    copy = engine.open(JOB, [Partial(b"".join(seen.pieces), seen.contributions)])
                    assert self._numbers(copy.report()) == _total(taken)
                assert self._numbers(whole.report()) == _total(range(len(shares)))

            self.check(law, st.lists(st.integers(0, 2), max_size=10))

    def test_a_partial_goes_on_elsewhere(self) -> None:
        """It holds what was answered by then, each once, and folding goes on after it."""
        with self.engine() as first, self.engine() as second:
            folding = first.open(JOB)
            for number in (0, 1):
                self._wait(folding.add(str(number), blob(number)))
            partial = self._wait(folding.partial())
            assert sorted(partial.contributions) == ["0", "1"]
            self._wait(folding.add("2", blob(2)))
            assert self._numbers(folding.report()) == _total([0, 1, 2])
            resumed = second.open(JOB, [partial])
            assert self._code(resumed.add("1", blob(1))) is Code.ALREADY_EXISTS
            self._wait(resumed.add("3", blob(3)))
            assert self._numbers(resumed.report()) == _total([0, 1, 3])

    def test_a_contribution_counts_once(self) -> None:
        """Whatever brings it a second time is refused with ALREADY_EXISTS, whole."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            self._wait(folding.add("0", blob(0)))
            assert self._code(folding.add("0", blob(0))) is Code.ALREADY_EXISTS
            other = engine.open(JOB)
            for number in (0, 1):
                self._wait(other.add(str(number), blob(number)))
            both = self._wait(other.partial())
            assert self._code(folding.merge(both)) is Code.ALREADY_EXISTS
            # Nothing of it came in: its other contribution is still free.
            self._wait(folding.add("1", blob(1)))
            assert self._numbers(folding.report()) == _total([0, 1])
            with pytest.raises(StatusError) as caught:
                engine.open(JOB, [both, both])
            assert caught.value.code is Code.ALREADY_EXISTS

    @pytest.mark.parametrize("kind", KINDS[1:])
    def test_a_refused_contribution_changes_nothing(self, kind: str) -> None:
        """The future says why; the id is free again, and the aggregate is as it was."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            self._wait(folding.add("0", blob(0)))
            expected = Code.NOT_FOUND if kind == "no tensor" else Code.INVALID_ARGUMENT
            assert self._code(folding.add("1", blob(1, kind))) is expected
            assert self._wait(folding.partial()).contributions == ("0",)
            self._wait(folding.add("1", blob(1)))
            assert self._numbers(folding.report()) == _total([0, 1])

    def test_a_broken_partial_changes_nothing(self) -> None:
        """It is refused with INVALID_ARGUMENT, and its contributions are free again."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            self._wait(folding.add("0", blob(0)))
            assert self._code(folding.merge(Partial(b"\xff", ("1",)))) is Code.INVALID_ARGUMENT
            self._wait(folding.add("1", blob(1)))
            assert self._numbers(folding.report()) == _total([0, 1])

    def test_kept_bytes_are_bounded(self) -> None:
        """RESOURCE_EXHAUSTED beyond the job's limit, and nothing is changed; sums keep nothing.

        Engines may count in their own way, so where between a byte and all of them is left open.
        """
        limited = FoldJob(JOB.configuration, max_kept_bytes=40)
        with self.engine() as engine:
            folding = engine.open(limited)
            codes = [self._code(folding.add(str(number), blob(number))) for number in range(15)]
            kept = codes.index(Code.RESOURCE_EXHAUSTED)
            assert kept > 0
            assert codes == [Code.OK] * kept + [Code.RESOURCE_EXHAUSTED] * (15 - kept)
            partial = self._wait(folding.partial())
            assert sorted(map(int, partial.contributions)) == list(range(kept))
            assert self._numbers(folding.report()) == _total(range(kept))
            sums = engine.open(FoldJob(SUM_JOB.configuration, max_kept_bytes=1))
            for number in range(5):
                self._wait(sums.add(str(number), blob(number)))
            assert self._numbers(sums.report()) == {"sum": [11111, 5]}

    def test_a_blob_may_be_used_again(self) -> None:
        """Once its future is done, the caller may write something else into the buffer."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            for number in range(6):
                buffer = bytearray(blob(number))
                given = (buffer, memoryview(buffer), memoryview(buffer).toreadonly())[number % 3]
                self._wait(folding.add(str(number), given))
                buffer[:] = bytes(len(buffer))
            assert self._numbers(folding.report()) == _total(range(6))

    def test_after_the_report_everything_is_aborted(self) -> None:
        """The fold is finished: whatever is asked of it fails with ABORTED."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            self._wait(folding.report())
            self._is_finished(folding)

    def test_after_an_abort_everything_is_aborted(self) -> None:
        """The fold is finished; aborting again does nothing."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            self._wait(folding.add("0", blob(0)))
            folding.abort()
            folding.abort()
            self._is_finished(folding)

    def test_stopping_aborts_what_is_open(self) -> None:
        """An engine that was stopped leaves no fold that takes contributions."""
        engine = self.factory.make(AGGREGATORS, self.options)
        asyncio.run(start_engine(engine))
        folding = engine.open(JOB)
        asyncio.run(stop_engine(engine))
        self._is_finished(folding)

    def test_a_job_that_cannot_run_is_refused(self) -> None:
        """INVALID_ARGUMENT when the fold is opened, not when the first device contributes."""
        strange = configuration_to_proto([Intrinsic("no such thing")]).SerializeToString()
        with self.engine() as engine:
            for job in (
                FoldJob(b"\xff"),
                FoldJob(strange),
                FoldJob(SUM_JOB.configuration, {"kit_sum": "kit_all"}),
            ):
                with pytest.raises(StatusError) as caught:
                    engine.open(job)
                assert caught.value.code is Code.INVALID_ARGUMENT

    def test_folds_do_not_mix(self) -> None:
        """Two sessions of one engine may use the same ids."""
        with self.engine() as engine:
            one, other = engine.open(JOB), engine.open(JOB)
            self._wait(one.add("0", blob(0)))
            self._wait(other.add("0", blob(1)))
            other.abort()
            assert self._numbers(one.report()) == _total([0])

    def test_many_threads_contribute(self) -> None:
        """Each contribution counts once, whoever brings it, and partials hold whole ones."""
        numbers = range(15)
        codes: list[tuple[int, Code]] = []
        partials: list[Partial] = []
        with self.engine() as engine:
            folding = engine.open(JOB)
            ready = threading.Barrier(self.threads + 1)

            def contribute() -> None:
                ready.wait(self.timeout)
                # All bring everything: of each contribution one is in, all others are refused.
                codes.extend(
                    (number, self._code(folding.add(str(number), blob(number))))
                    for number in numbers
                )

            def look() -> None:
                ready.wait(self.timeout)
                partials.extend(self._wait(folding.partial()) for _ in range(5))

            work: list[Callable[[], None]] = [contribute] * self.threads + [look]
            running = [threading.Thread(target=function) for function in work]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join(self.timeout)
                assert not thread.is_alive()
            assert Counter(number for number, code in codes if code is Code.OK) == Counter(numbers)
            assert {code for _, code in codes} <= {Code.OK, Code.ALREADY_EXISTS}
            for partial in partials:
                inside = sorted(map(int, partial.contributions))
                assert len(set(inside)) == len(inside)
                assert _read(report_partial(AGGREGATORS, JOB, partial)) == _total(inside)
            assert self._numbers(folding.report()) == _total(numbers)

    @applies_if(lambda cls: cls.expendable)
    def test_a_report_survives_the_process_that_jobs_run_in(self) -> None:
        """What was answered for before a process died is in the report."""
        with self.engine() as engine:
            folding = engine.open(JOB)
            for number in range(3):
                self._wait(folding.add(str(number), blob(number)))
            with suppress(ProcessLookupError):  # it may have been there for one job only
                os.kill(int(self._wait(engine.run(f"{JOBS}:where", b""))), signal.SIGKILL)
            self._wait(folding.add("3", blob(3)))
            assert self._numbers(folding.report()) == _total(range(4))

    def _numbers(self, report: Future[bytes]) -> dict[str, list[int]]:
        return _read(self._wait(report))

    def _is_finished(self, folding: Fold) -> None:
        for future in (
            folding.add("late", blob(1)),
            folding.partial(),
            folding.report(),
            folding.merge(Partial(b"", ())),
        ):
            assert self._code(future) is Code.ABORTED


def _total(numbers: Sequence[int]) -> dict[str, list[int]]:
    """Return what a fold of these contributions must report."""
    powers = [10**number for number in numbers]
    return {"sum": [sum(powers), len(powers)], "all": sorted(powers)}


def _read(data: bytes) -> dict[str, list[int]]:
    return {name: tensor.tolist() for name, tensor in open_checkpoint(data).items()}
