"""Results with noise in them: what an aggregator promises beforehand, and what it releases.

The state of a randomised aggregator has no noise in it and follows the laws of all aggregators.
Its result is drawn once: after the last merge, in the process that owns the task, before the
transaction that ends the task, which stores it, books it and keeps what the next round needs. What
was drawn and could not be stored was seen by nobody.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcp_core.aggregation.aggregator import Accumulator
from fcp_core.aggregation.aggregator import Resumed as Resumed  # it was defined here
from fcp_core.aggregation.spec import Tensor

#: What a release costs, as a ledger understands it: what JSON holds.
Cost = Mapping[str, Any]


@dataclass(frozen=True)
class Noise:
    """The noise in each number of an output.

    :param output: the name of the output tensor.
    :param mechanism: such as ``gaussian`` or ``laplace``.
    :param stddev: its standard deviation, in the output's own unit.
    :param parameters: what else describes it: ``epsilon``, ``delta``, ``rho``, ``clip``, ...
    """

    output: str
    mechanism: str
    stddev: float
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "output": self.output,
            "mechanism": self.mechanism,
            "stddev": self.stddev,
            **self.parameters,
        }


@dataclass(frozen=True)
class Promise:
    """What a release costs and how noisy it is, known before there is one.

    :param cost: one composable event, such as ``{"type": "zcdp", "rho": 0.5}``.
    """

    cost: Cost
    noise: tuple[Noise, ...] = ()


@dataclass(frozen=True)
class Release:
    """A result that was drawn.

    :param tensors: one for each output, nested ones included, in depth-first order.
    :param promise: what it cost, and its noise.
    :param state: what the next round of the series begins with; None: there is nothing to keep. It
        may hold what takes the noise off again, and is stored where results are.
    """

    tensors: Sequence[Tensor]
    promise: Promise
    state: bytes | None = None


@dataclass(frozen=True)
class Released:
    """The outputs of a task by name, and its releases by the positions of their intrinsics."""

    tensors: dict[str, Tensor]
    releases: Mapping[int, Release]


@dataclass(frozen=True)
class ReleaseContext:
    """What a release is drawn with.

    :param goal_count: how many contributions the task is to have. How many it has may depend on
        one device, so noise and divisors must not depend on that.
    :param state: what the last release of the series left; None: this is the first.
    :param series: the name of the series, unlike that of any other.
    :param entropy: returns so many secret random bytes; the operating system's, but in tests.
    """

    goal_count: int
    state: bytes | None = None
    series: str = ""
    entropy: Callable[[int], bytes] = os.urandom


class Randomised(Accumulator):
    """An accumulator whose result is drawn. Its factory says that it is ``randomised``.

    :meth:`report` returns the result without noise, for the conformance kit only: a server never
    calls it.
    """

    @abstractmethod
    def promise(self, context: ReleaseContext) -> Promise:
        """Return what :meth:`release` will cost at most; asked when a task is submitted.

        :raises StatusError: INVALID_ARGUMENT if there can be no such release.
        """

    @abstractmethod
    def release(self, context: ReleaseContext) -> Release:
        """Draw the result; the accumulator is not used afterwards.

        :raises StatusError: FAILED_PRECONDITION if there is nothing that may be released.
        """
