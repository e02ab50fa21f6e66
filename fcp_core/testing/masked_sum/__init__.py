"""Masked sums: a small aggregation protocol with a service of its own, to learn and test with.

**It is not secure.** The server hands out the masks' seeds, so it could unmask everybody. What it
shows is the shape of such a protocol: phases in which devices wait for each other, calls and
messages of its own, and devices that vanish half-way.

Devices form cohorts. Each pair of a cohort shares a seed; the one with the lower index adds the
mask that the seed expands to, the other one subtracts it, so the masks cancel in the cohort's sum.

1. *Joining*. Devices call ``Join`` and wait until the cohort is complete, or until the phase's time
   is over and enough have come. Each gets its index and the seeds that it shares with the others.
2. *Masking*. Each uploads its integers plus its masks, and calls ``Missing``.
3. *Concluding*. When all have uploaded, or the phase's time is over, ``Missing`` answers who did
   not. ``Conclude`` brings the seeds shared with those, since their masks do not cancel. The sum
   is accumulated for the whole cohort at once, and then ``Conclude`` is answered.

A cohort in which too few are left, or one of which vanishes while concluding, is dropped; the task
goes on with others. The messages are in ``messages``, the two sides in ``server`` and ``device``.
A plugin offers the protocol::

    @hookimpl
    def fcp_add_options(options):
        masked_sum.add_options(options)

    @hookimpl
    def fcp_register_aggregation_protocols():
        return [masked_sum.MASKED_SUM]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.configuration import flat_inputs, parse_configuration
from fcp_core.aggregation.spec import DataType
from fcp_core.rounds.protocols import AggregationProtocolFactory
from fcp_core.testing.masked_sum.device import MaskedSumDevice
from fcp_core.testing.masked_sum.messages import FILE
from fcp_core.testing.masked_sum.server import MaskedSum

if TYPE_CHECKING:
    from fcp_core.plugins.registry import OptionRegistry
    from fcp_core.rounds.tasks import TaskSpec

__all__ = ["FILE", "MASKED_SUM", "MaskedSum", "MaskedSumDevice", "add_options"]


def add_options(options: OptionRegistry) -> None:
    """Declare the options of ``[fcp:protocol.masked_sum]``."""

    def add(name: str, type: str, default: object, minimum: float, help: str) -> None:
        options.add("protocol.masked_sum", name, type, default, help, minimum=minimum)

    add("cohort", "int", 8, 2, "how many devices form a cohort")
    add("minimum", "int", 2, 2, "how many of a cohort are enough")
    add("phase_timeout", "duration", "30s", 0.001, "how long each phase may take")
    add("polling_interval", "duration", "500ms", 0.001, "how often a waiting device asks again")


def _check(spec: TaskSpec, options: Mapping[str, Any]) -> list[str]:
    """Say why a task cannot be summed under masks."""
    problems = []
    for intrinsic in parse_configuration(spec.aggregation):
        if intrinsic.uri != "federated_sum":
            problems.append(f"masked sums can only do federated_sum, not {intrinsic.uri}.")
        problems += [
            f"masked sums need int64 tensors of one shape, not {tensor}."
            for tensor in flat_inputs(intrinsic)
            if tensor.dtype is not DataType.INT64 or not tensor.is_fully_defined
        ]
    smallest = min(options["cohort"], spec.goal_count)
    if options["minimum"] > smallest:
        problems.append(
            f"masked sums with a minimum of {options['minimum']} need a cohort and a goal_count of "
            f"at least that, not {smallest}."
        )
    return problems


#: What a plugin returns from ``fcp_register_aggregation_protocols``.
MASKED_SUM = AggregationProtocolFactory(
    name="masked_sum",
    summary="sums under masks that cancel, for tests: it is not secure",
    make=lambda options: MaskedSum(**options),
    services=(FILE.service,),
    files=(FILE.descriptor,),
    aborting=("Abort",),
    check=_check,
    device=MaskedSumDevice,
)
