"""Writes the plan by which a keyboard finds out whether it may take part, and the plan's input."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from fcp_core.protocol.protos.plan_pb2 import ExampleSelector
from fcp_platform.eligibility import eligibility_task


def weigh(taps, parameters):
    """Return 1 for a keyboard with taps enough, of which few went wrong; else 0."""
    wrong, total = taps.reduce(
        (np.int64(0), np.int64(0)),
        lambda counts, tap: (counts[0] + tf.cast(tap == b"wrong", tf.int64), counts[1] + 1),
    )
    few = tf.cast(wrong, tf.float32) <= parameters["most_wrong"] * tf.cast(total, tf.float32)
    return tf.cast((total >= parameters["least"]) & few, tf.float32)


def main() -> None:
    """Write ``plan.pb`` and ``parameters.ckpt`` to the folder that is named, or to this one."""
    folder = Path(*sys.argv[1:] or ["."])
    task = eligibility_task(
        weigh,
        ExampleSelector(collection_uri="app:/taps"),
        task_names=["taps"],
        parameters={"least": np.int64(20), "most_wrong": np.float32(0.1)},
    )
    (folder / "plan.pb").write_bytes(task.plan)
    (folder / "parameters.ckpt").write_bytes(task.checkpoint)


if __name__ == "__main__":
    main()
