"""TFF's worker process: started on purpose, and gone with the program."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_federated")
pytestmark = [pytest.mark.tff, pytest.mark.slow]

_PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from fcp_platform.runtime import LocalRuntime

@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def total(values):
    return tff.federated_sum(values)

with LocalRuntime() as runtime:
    assert total([1, 2, 3]) == 6
    print(runtime.pid, flush=True)
    sys.stdin.read()
"""


def _start() -> tuple[subprocess.Popen[str], int]:
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())


def _wait_for_end(pid_descriptor: int) -> None:
    """Wait until a process has ended: its descriptor becomes readable."""
    ready, _, _ = select.select([pid_descriptor], [], [], 60)
    assert ready, "TFF's worker outlives the program"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("end", ["kill", "terminate", "finish"])
def test_worker_ends_with_the_program(end: str) -> None:
    program, worker = _start()
    assert Path(f"/proc/{worker}/comm").read_text().strip() == "worker_binary"
    descriptor = os.pidfd_open(worker)
    try:
        if end == "finish":
            program.communicate("")
            assert program.returncode == 0
        else:
            program.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
            program.communicate()
        _wait_for_end(descriptor)
    finally:
        os.close(descriptor)
        program.kill()


def test_default_context_is_restored() -> None:
    import tensorflow_federated as tff

    from fcp_platform.runtime import LocalRuntime

    stack = tff.framework.get_context_stack()
    before = stack.current
    runtime = LocalRuntime()
    with runtime:
        assert runtime.pid is not None
        inside = stack.current
    assert runtime.pid is None
    assert stack.current is before is not inside
    runtime.stop()
