"""The part of the engine kit that is about jobs, and what its laws share."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from fcp_core.aggregation.engine import Engine, EngineFactory, start_engine, stop_engine
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing.engine_aggregators import AGGREGATORS
from fcp_core.testing.kit import Conformance
from fcp_core.testing.laws import applies_if

#: Where the kit's jobs are.
JOBS = "fcp_core.testing.engine_jobs"


class JobLaws(Conformance):
    """The laws of :meth:`Engine.run`, checked for one factory."""

    factory: ClassVar[EngineFactory]
    #: Everything that the engine needs: defaults are the configuration's, not the kit's.
    options: ClassVar[Mapping[str, Any]] = {}
    #: How long one future may take before a check fails, in seconds.
    timeout: ClassVar[float] = 60.0
    #: Whether jobs run in other processes, of which the kit may kill some; never the kit's own.
    expendable: ClassVar[bool] = False

    def test_a_job_is_a_function_of_bytes(self) -> None:
        """It gets its arguments, large ones too, and what it raises comes back."""
        with self.engine() as engine:
            for size in (0, 10, 3 << 20):
                data = os.urandom(size)
                assert self._wait(engine.run(f"{JOBS}:double", data)) == data + data
            assert self._code(engine.run(f"{JOBS}:refuse", b"why")) is Code.OUT_OF_RANGE
            for name in (f"{JOBS}:nothing", "no_such_module:double", "nonsense"):
                assert self._code(engine.run(name, b"")) is Code.INTERNAL

    @applies_if(lambda cls: cls.expendable)
    def test_a_job_survives_the_process_that_runs_it(self) -> None:
        """Killed in the middle, it is done again somewhere else, with small and large arguments."""
        with self.engine() as engine:
            for more in (0, 3 << 20):
                with tempfile.TemporaryDirectory() as folder:
                    arguments = folder.encode() + b"\0" + bytes(more)
                    result = engine.run(f"{JOBS}:wait", arguments)
                    killed = self._kill_one(Path(folder), result, set())
                    others = self._kill_one(Path(folder), result, {killed}, sig=0)
                    (Path(folder) / "go").touch()
                    assert killed != others
                    assert self._wait(result) == str(len(arguments)).encode()

    def _kill_one(
        self, folder: Path, result: Future[bytes], known: set[int], sig: int = signal.SIGKILL
    ) -> int:
        """Wait until another process runs the job in *folder*; send it a signal, return its id."""
        limit = time.monotonic() + self.timeout
        while time.monotonic() < limit and not result.done():
            found = {int(path.name.partition("-")[2]) for path in folder.glob("running-*")}
            if new := found - known - {os.getpid()}:
                os.kill(min(new), sig)
                return min(new)
            time.sleep(0.01)
        raise AssertionError("no other process runs the job")

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """Make an engine, start it, and stop it in the end."""
        engine = self.factory.make(AGGREGATORS, self.options)
        asyncio.run(start_engine(engine))
        try:
            yield engine
        finally:
            asyncio.run(stop_engine(engine))

    def _wait(self, future: Future[Any]) -> Any:
        return future.result(timeout=self.timeout)

    def _code(self, future: Future[Any]) -> Code:
        """Return what a future fails with; OK if it does not."""
        error = future.exception(timeout=self.timeout)
        if error is None:
            return Code.OK
        assert isinstance(error, StatusError), f"a future failed with {error!r}"
        return error.code
