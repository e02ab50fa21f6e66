"""TFF's own runtime in a worker process that never outlives the program.

TFF runs computations that are not federated programs, such as a learning process's ``initialize``,
in a process of its own, ``worker_binary``. Left to itself it starts one at the first use and leaves
it behind if the program is killed. Here the worker is started and ended on purpose, and on Linux
the kernel ends it with the program, however that ends.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import portpicker  # type: ignore[import-untyped]
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import compiler
from tensorflow_federated.python.core.environments.tensorflow_frontend import tensorflow_computation
from typing_extensions import Self

_MAX_MESSAGE = 2 * 1000**3
_CHANNEL_OPTIONS = [
    ("grpc.max_message_length", _MAX_MESSAGE),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
]

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0

# Becomes the worker. PR_SET_PDEATHSIG (1) survives the exec: the kernel then sends SIGKILL when the
# thread that started the worker ends. If that has happened already, there is a new parent.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalRuntime:
    """A worker of TFF's runtime; a context manager, within which it is TFF's default context.

    :param default_num_clients: how many clients a computation has that does not tell from its
        arguments.
    """

    def __init__(self, *, default_num_clients: int = 0) -> None:
        self._default_num_clients = default_num_clients
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._stub: Any = None
        self._channel: Any = None
        self._previous: Any = None
        factory = tff.framework.ResourceManagingExecutorFactory(executor_stack_fn=self._executor)
        options = {
            "executor_fn": factory,
            "compiler_fn": compiler.desugar_and_transform_to_native,
            "transform_args": tensorflow_computation.transform_args,
            "transform_result": tensorflow_computation.transform_result,
        }
        self._sync_context = tff.framework.SyncExecutionContext(**options)
        self._async_context = tff.framework.AsyncExecutionContext(**options)

    @property
    def federated_context(self) -> Any:
        """A ``tff.program.NativeFederatedContext``, for ``FederatedContext(base_context=...)``."""
        return tff.program.NativeFederatedContext(self._async_context)

    @property
    def pid(self) -> int | None:
        """The worker's process id; None if it does not run."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        """Start the worker and make it TFF's default.

        :raises RuntimeError: if it cannot be started.
        """
        port = portpicker.pick_unused_port()
        self._process = self._launch(port)
        self._channel = grpc.insecure_channel(f"localhost:{port}", _CHANNEL_OPTIONS)
        self._stub = tff.framework.RemoteExecutorGrpcStub(self._channel)
        give_up = time.monotonic() + _START_SECONDS
        while not self._stub.is_ready:
            if self._process.poll() is not None or time.monotonic() > give_up:
                code = self._process.poll()
                self.stop()
                raise RuntimeError(
                    "TFF's worker did not start"
                    + ("" if code is None else f": it ended with status {code}")
                )
            time.sleep(0.02)
        self._previous = tff.framework.get_context_stack().current
        tff.framework.set_default_context(self._sync_context)
        return self

    def __exit__(self, *error: object) -> None:
        """End the worker; TFF's default is again what it was before."""
        tff.framework.set_default_context(self._previous)
        self.stop()

    def stop(self) -> None:
        """End the worker. May be repeated."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self._ended.set()

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        """Start the worker from a thread that lives as long as the worker or the program.

        The kernel looks at the thread that started a process, not at the program as a whole.
        """
        specification = importlib.util.find_spec("tensorflow_federated")
        if specification is None or specification.origin is None:
            raise RuntimeError("TFF is not installed as files, so its worker cannot be found")
        worker = [
            str(Path(specification.origin).parent / "data" / "worker_binary"),
            f"--port={port}",
            "--max_concurrent_computation_calls=-1",
        ]
        started: Future[subprocess.Popen[bytes]] = Future()

        def run() -> None:
            try:
                process = _start(worker)
            except OSError as error:
                started.set_exception(error)
            else:
                started.set_result(process)
                self._ended.wait()

        self._ended.clear()
        threading.Thread(target=run, name="tff-worker", daemon=True).start()
        try:
            return started.result()
        except OSError as error:
            raise RuntimeError(f"TFF's worker {worker[0]} cannot be run: {error}") from error

    def _executor(self, cardinalities: Any) -> Any:
        cardinalities.setdefault(tff.CLIENTS, self._default_num_clients)
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError("TFF's worker does not run: use LocalRuntime as a context manager")
        executor = tff.framework.RemoteExecutor(self._stub)
        executor.set_cardinalities(cardinalities)
        return executor


def _start(worker: list[str]) -> subprocess.Popen[bytes]:
    command = worker
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *worker]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
