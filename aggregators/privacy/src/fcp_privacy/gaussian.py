"""Gaussian noise on clipped sums and means, with a clip that is fixed or follows a quantile.

The adaptive clip is that of Andrew, Thakkar, McMahan and Ramaswamy, "Differentially private
learning with adaptive clipping" (2021), with the steps of ``gaussian_adaptive`` of TensorFlow
Federated.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.release import Promise, Release, ReleaseContext, Resumed
from fcp_core.aggregation.spec import Intrinsic
from fcp_privacy.accounting import check_delta, gaussian_sigma
from fcp_privacy.clipped import STEPS, ClippedSums, wanted
from fcp_privacy.events import Gaussian, to_cost
from fcp_privacy.noise import discrete_gaussian
from fcp_privacy.randomness import Randomness

MECHANISM = "gaussian"


class FixedClip(ClippedSums):
    """Gaussian noise, and a clip that is the same in all rounds."""

    @classmethod
    def make(cls, intrinsic: Intrinsic, options: Options) -> Self:
        """Make an empty one."""
        clip = wanted(intrinsic, options, "clip")
        return cls(
            intrinsic,
            options,
            clip=clip,
            multiplier=_multiplier(intrinsic, options),
            scales=_scales(intrinsic, options),
        )

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what it costs."""
        stddev = self.clip * self.multiplier
        return Promise(
            to_cost(Gaussian(self.multiplier)),
            self.noise(
                self.clients(context.goal_count),
                stddev,
                MECHANISM,
                noise_multiplier=self.multiplier,
            ),
        )

    def release(self, context: ReleaseContext) -> Release:
        """Add the noise."""
        drawn = discrete_gaussian(STEPS, self.sums.size, Randomness(entropy=context.entropy))
        tensors = self.tensors(self.sums + drawn, self.clients(context.goal_count))
        return Release(tensors, self.promise(context))


class AdaptiveClip(ClippedSums):
    """Gaussian noise, and a clip that follows a quantile of the contributions' norms.

    How many contributions were within the clip is released too, with noise of its own; the noise
    of the sums is more, so that both together cost what ``noise_multiplier`` says.
    """

    @classmethod
    def make(cls, intrinsic: Intrinsic, options: Options) -> Self:
        """Make an empty one."""
        multiplier = wanted(intrinsic, options, "noise_multiplier")
        count_stddev = _count_stddev(intrinsic, options)
        if not multiplier < 2 * count_stddev:
            raise bad(
                intrinsic,
                f"the noise multiplier {multiplier:g} must be below twice the standard deviation "
                f"of the clipped count, {count_stddev:g}: set clipped_count_stddev",
            )
        clip = options.get("clip") or wanted(intrinsic, options, "initial_clip")
        values = values_multiplier(multiplier, count_stddev) if multiplier > 0 else multiplier
        return cls(intrinsic, options, clip=float(clip), multiplier=values)

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what it costs."""
        multiplier = float(self.options["noise_multiplier"])
        return Promise(
            to_cost(Gaussian(multiplier)),
            self.noise(
                self.clients(context.goal_count),
                self.clip * self.multiplier,
                MECHANISM,
                noise_multiplier=multiplier,
            ),
        )

    def release(self, context: ReleaseContext) -> Release:
        """Add the noise, and say what the clip of the next round is."""
        randomness = Randomness(entropy=context.entropy)
        clients = self.clients(context.goal_count)
        drawn = discrete_gaussian(STEPS, self.sums.size, randomness)
        tensors = self.tensors(self.sums + drawn, clients)
        # A contribution counts half a point up or down, in steps of its noise.
        stddev = _count_stddev(self.vectors.intrinsic, self.options)
        half = math.floor(STEPS / (2 * stddev))
        points = (2 * self.within - self.num_inputs) * half
        points += int(discrete_gaussian(STEPS, 1, randomness)[0])
        fraction = points * stddev / STEPS / clients + 0.5
        clip = next_clip(
            self.clip,
            fraction,
            float(self.options["quantile"]),
            float(self.options["clip_learning_rate"]),
        )
        return Release(tensors, self.promise(context), msgspec.json.encode({"clip": clip}))


def resume_clip(options: Options, state: bytes | None) -> Resumed:
    """Begin a round with the clip that the last one has left."""
    clip = float(options["initial_clip"])
    if state is not None:
        clip = float(msgspec.json.decode(state)["clip"])
    # The server clips with what devices see.
    shown = np.array(clip, np.float32)
    name = options.get("clip_tensor")
    return Resumed({"clip": float(shown)}, {name: shown} if name else {})


def values_multiplier(multiplier: float, count_stddev: float) -> float:
    """Return the noise multiplier of the sums, so that they and the count cost *multiplier*."""
    return float((multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5)


def next_clip(clip: float, fraction: float, quantile: float, learning_rate: float) -> float:
    """Return the clip after a round.

    :param fraction: which part of the contributions was within the clip, with noise.
    """
    within = min(1.0, max(0.0, fraction))
    return clip * math.exp(-learning_rate * (within - quantile))


def _count_stddev(intrinsic: Intrinsic, options: Options) -> float:
    """Return the standard deviation of the clipped count: a twentieth of the clients."""
    chosen, clients = options.get("clipped_count_stddev"), options.get("clients")
    if chosen is None and not clients:
        raise bad(intrinsic, "set clients, or clipped_count_stddev")
    return float(chosen if chosen is not None else 0.05 * float(clients or 0))


def _scales(intrinsic: Intrinsic, options: Options) -> dict[str, float]:
    """Return the factors of ``scales``, such as ``("count=4",)``."""
    scales = {}
    for pair in options.get("scales") or ():
        name, _, factor = pair.rpartition("=")
        try:
            scales[name] = float(factor)
        except ValueError:
            raise bad(intrinsic, f"scales has {pair!r}; write NAME=FACTOR") from None
    return scales


def _multiplier(intrinsic: Intrinsic, options: Options) -> float:
    """Return the noise multiplier that the options ask for."""
    multiplier, epsilon = options.get("noise_multiplier"), options.get("epsilon")
    if (multiplier is None) == (epsilon is None):
        raise bad(intrinsic, "set noise_multiplier, or epsilon and delta")
    if multiplier is not None:
        return float(multiplier)
    delta = wanted(intrinsic, options, "delta")
    try:
        check_delta(delta)
        return gaussian_sigma(float(epsilon or 0.0), delta)
    except ValueError as error:
        raise bad(intrinsic, str(error)) from None
