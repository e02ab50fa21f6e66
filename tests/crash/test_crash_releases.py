"""The crash simulation of results with noise: it holds, and sees the faults that are planted."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.crashing.releases import plan_of
from benchmarks.crashing.simulation import simulate
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.server.services.store import Ended, TaskStore
from fcp_core.storage import accounts
from fcp_core.storage.records import BlobRecord, TaskRecord

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_whatever_fails_a_result_is_drawn_once_and_booked():
    command = [sys.executable, ROOT / "benchmarks" / "crash.py"]
    done = subprocess.run(
        [*command, "--faults", "0", "--releases", "25", "--seed", "1"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fates = [line for line in done.stdout.splitlines() if line.startswith("  release: ")]
    assert sum(int(line.split()[-1]) for line in fates) >= 25
    assert len(fates) > 4


def books_after_the_result(patch):
    """In a transaction of its own, which may not come."""

    async def end(self, record, result, booking=None):
        ended = await kept(self, record, result)
        if booking is None:
            return ended

        def book(tx):
            stored = tx.get(TaskRecord, record.task_id)
            tx.put(replace(stored, release=booking.release))
            return accounts.book(tx, record, booking)

        return Ended(ended.record, ended.result, await self._storage.transact(book))

    kept = TaskStore.end
    patch.setattr(TaskStore, "end", end)


def draws_anew_at_each_attempt(patch):
    """What was stored, and whose answer was lost, is drawn and stored once more."""

    async def end(self, record, result, booking=None):
        ended = await kept(self, record, result, booking)
        if result is not None and ended.result == result and not ended.accounts:
            tensors = {**open_checkpoint(result), "noise": np.random.default_rng().normal(size=())}
            fresh = write_checkpoint(tensors, "tf_v1")
            blob = BlobRecord(f"{record.task_id}/result", record.task_id, fresh)
            await self._storage.transact(lambda tx: tx.put(blob))
        return ended

    kept = TaskStore.end
    patch.setattr(TaskStore, "end", end)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (books_after_the_result, "its entry: False"),
        (draws_anew_at_each_attempt, "results of"),
    ],
)
def test_a_planted_fault_is_seen(plant, expected, monkeypatch):
    plant(monkeypatch)
    seen = []
    for seed in range(1, 20):
        seen = [text for text in simulate(plan_of(seed)).wrong if expected in text]
        if seen:
            break
    assert seen


def test_a_process_that_dies_at_each_step_of_a_release_keeps_its_promises(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "crash.py", "--faults", "0"]
    done = subprocess.run(
        [*command, "--release-kills", "7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [line.split()[-1] for line in steps] == ["1"] * 7
    assert "all were kept" in done.stdout
