"""Events that dp-accounting computes. It takes seconds to be imported, so that is done late."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from fcp_privacy.events import Gaussian, PoissonSampled, Relation, Spent


def sampled(
    events: Sequence[tuple[PoissonSampled, int]], relation: Relation, delta: float
) -> Spent:
    """Return what sampled Gaussian events cost together at a delta, by Renyi accounting.

    :param events: with how often each happened.
    :raises ValueError: if there is another event, or dp-accounting is not installed.
    """
    for event, _ in events:
        if relation != "zero_out" or not isinstance(event.event, Gaussian):
            raise ValueError("only Gaussian events can be sampled, and not where one is replaced")
        if not 0 < event.probability <= 1:
            raise ValueError(f"the probability must be in (0, 1], not {event.probability}")
    try:
        accounting: Any = importlib.import_module("dp_accounting")
        rdp: Any = importlib.import_module("dp_accounting.rdp")
    except ImportError as error:
        raise ValueError(
            f"sampled events need dp-accounting, which is not installed: {error}"
        ) from None
    accountant = rdp.RdpAccountant()
    for event, count in events:
        assert isinstance(event.event, Gaussian)  # see above
        gaussian = accounting.GaussianDpEvent(event.event.noise_multiplier)
        accountant.compose(accounting.PoissonSampledDpEvent(event.probability, gaussian), count)
    return Spent(epsilon=float(accountant.get_epsilon(delta)), delta=delta)
