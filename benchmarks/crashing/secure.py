"""Random histories of secure aggregation, in virtual time: whoever counts is in the sum, once."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.client.protocols import PlanResults
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.testing.protocol_core import KitCore
from fcp_core.testing.protocol_devices import LawBrokenError

_SOURCE = Path(__file__).parents[2] / "aggregators" / "secure_aggregation" / "src"

SHAPE = (3,)
OPTIONS = {
    "minimum": 3,
    "adversary": "curious_server",
    "adversarial_rate": 0.0,
    "join_timeout": 30.0,
    "phase_timeout": 20.0,
}
REFUSAL = StatusError(Code.INVALID_ARGUMENT, "the contribution does not fit")
#: How many things happen before all that is left may end.
EVENTS = 150


def _spec() -> TaskSpec:
    bound = (Parameter("", np.array(10**9, np.int64)),)
    hidden, seen = TensorSpec("hidden", DataType.INT64, SHAPE), TensorSpec("seen", DataType.INT64)
    sums = [
        Intrinsic(
            "federated_secure_sum", (hidden,), (TensorSpec("a", DataType.INT64, SHAPE),), bound
        ),
        Intrinsic("federated_sum", (seen,), (TensorSpec("b", DataType.INT64),)),
    ]
    configuration = configuration_to_proto(sums).SerializeToString()
    return TaskSpec("people", "task", b"", configuration, goal_count=1000, minimum_count=3)


def history(seed: int) -> int:
    """Play one history; return how many contributions counted.

    :raises AssertionError: if somebody counts who is not in the sum, is in it twice or is told
        otherwise, if somebody waits for ever, or if the protocol breaks its contract.
    """
    if str(_SOURCE) not in sys.path:
        sys.path.insert(0, str(_SOURCE))
    plugin: Any = importlib.import_module("fcp_secagg.plugin")
    device: Any = importlib.import_module("fcp_secagg.device")
    rng = random.Random(seed)
    options = {**OPTIONS, "cohort": rng.randint(5, 9), "dropout_rate": rng.choice([0.0, 0.2, 0.4])}
    protocol = device.SecureAggregationDevice(rng.randbytes)
    core = KitCore(plugin.FACTORY, options, _spec(), protocol, seed)

    def arrive() -> None:
        number = len(core.devices)
        tensors = {
            "hidden": np.array([rng.randrange(10**9), number, 1], np.int64),
            "seen": np.int64(number),
        }
        core.assign(PlanResults(write_checkpoint(tensors, "federated_compute")))

    for _ in range(rng.randint(5, 20)):
        arrive()
    for _ in range(EVENTS):
        event, one = rng.random(), rng.choice(core.devices)
        if event < 0.8:
            core.step(one)
        elif event < 0.86:
            core.vanish(one)
        elif event < 0.9:
            arrive()
        elif event < 0.92:
            core.to_next_tick()
        elif core.outcomes:
            work = not hasattr(core.outcomes[0], "assignments")
            refused = rng.random() < 0.05 and not work
            core.finish(0, REFUSAL if refused else None)
    core.run(600.0)
    core.fall_silent(600.0)
    return _check(core)


def _check(core: KitCore) -> int:
    counted = [one for one in core.devices if one.state == "counted"]
    for one in core.devices:
        if (one.told is True and one.state != "counted") or (
            isinstance(one.told, StatusError) and one.state == "counted"
        ):
            raise LawBrokenError(f"{one.id} was told {one.told!r} and is {one.state}")
    given = [dict(open_checkpoint(one.results.checkpoint)) for one in counted]
    made = [dict(open_checkpoint(data)) for _, data in core.accumulated]
    for name in ("hidden", "seen"):
        wanted = sum(np.asarray(tensors[name]) for tensors in given)
        total = sum(np.asarray(tensors[name]) for tensors in made if name in tensors)
        if not np.array_equal(wanted, total):
            raise LawBrokenError(f"the sum of {name} is {total}, that of who counts {wanted}")
    return len(counted)


def simulate(histories: int, seed: int) -> int:
    """Play so many histories; return how many broke something."""
    failed = counted = 0
    for number in range(seed, seed + histories):
        try:
            counted += history(number)
        except AssertionError as error:
            failed += 1
            print(f"secure aggregation, history {number}: {error}", flush=True)
    print(f"secure aggregation  {histories:,} histories, {counted:,} counted, {failed} failed")
    return failed
