"""Gaussian noise that is correlated over the rounds of a series: DP-FTRL by trees and by matrices.

What a program adds up over rounds has much less noise than with noise of its own in each round, and
no sampling of devices is assumed. What is assumed is that a device comes again after *separation*
rounds at the earliest, which only the devices themselves can make sure of.

What a release holds is the sum of its round, with the noise of its round: the noise of the sum over
all rounds is that of the tree, or of the matrix. Sources: Kairouz, McMahan and others, "Practical
and private (deep) learning without sampling or shuffling" (2021); see :mod:`fcp_privacy.blt`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache

import msgspec
import numpy as np
from typing_extensions import Self

from fcp_core.aggregation.aggregator import Options
from fcp_core.aggregation.checks import bad
from fcp_core.aggregation.release import Promise, Release, ReleaseContext, Resumed
from fcp_core.aggregation.spec import Intrinsic
from fcp_privacy.blt import BLT, Floats, fit
from fcp_privacy.clipped import STEPS, ClippedSums, Integers, wanted
from fcp_privacy.events import ZCDP, Series, to_cost
from fcp_privacy.matrix import tree_sensitivity
from fcp_privacy.noise import discrete_gaussian
from fcp_privacy.randomness import KEY_BYTES, Randomness

#: Sensitivities of trees take their time.
_tree_sensitivity = lru_cache(tree_sensitivity)


class Parameters(msgspec.Struct, frozen=True):
    """What must be the same in all rounds of a series.

    :param size: of the vector.
    :param restart_every: of a tree.
    :param rounds: of a matrix.
    :param buffers: of a matrix.
    """

    clip: float
    noise_multiplier: float
    separation: int
    size: int
    restart_every: int = 0
    rounds: int = 0
    buffers: int = 0


class Correlated(ClippedSums):
    """Clipped sums of one round of a series."""

    mechanism: str

    @classmethod
    def make(cls, intrinsic: Intrinsic, options: Options) -> Self:
        """Make an empty one."""
        clip = wanted(intrinsic, options, "clip")
        multiplier = wanted(intrinsic, options, "noise_multiplier")
        return cls(intrinsic, options, clip=clip, multiplier=multiplier)

    @property
    def rounds(self) -> int | None:
        """How many rounds the series is to have."""
        rounds: int | None = self.options.get("rounds")
        return rounds

    @property
    def separation(self) -> int:
        """How many rounds lie between two of one device at least, the second one counted."""
        return int(self.options.get("separation") or 1)

    def promise(self, context: ReleaseContext) -> Promise:
        """Return what the whole series costs, or all rounds up to this one if it has no end."""
        return self._promise(context, done=False)

    def _promise(self, context: ReleaseContext, *, done: bool) -> Promise:
        number = self.round_of(context.state)
        if self.rounds is not None and number > self.rounds:
            raise bad(
                self.vectors.intrinsic,
                f"the series has had its {self.rounds} rounds; name another series",
            )
        until = number if done or self.rounds is None else self.rounds
        rho = self.sensitivity(until) / (2 * self.multiplier**2)
        stddev = self.clip * self.multiplier
        return Promise(
            to_cost(Series(context.series, ZCDP(rho))),
            self.noise(
                self.clients(context.goal_count),
                stddev * self.round_noise(number),
                self.mechanism,
                noise_multiplier=self.multiplier,
                round=number,
                separation=self.separation,
            ),
        )

    def check_same(self, kept: Parameters) -> None:
        """Refuse a round with other parameters than those before: the analysis is of them all.

        :raises StatusError: INVALID_ARGUMENT, naming the first.
        """
        for name in Parameters.__struct_fields__:
            before, now = getattr(kept, name), getattr(self.parameters, name)
            if before != now:
                raise bad(
                    self.vectors.intrinsic,
                    f"{name} was {before:g} in the rounds of the series before and would be "
                    f"{now:g}: it must stay as it is. Name another series",
                )

    @property
    def parameters(self) -> Parameters:
        """What must be the same in all rounds of a series."""
        return Parameters(
            clip=self.clip,
            noise_multiplier=self.multiplier,
            separation=self.separation,
            size=self.sums.size,
        )

    @abstractmethod
    def round_of(self, state: bytes | None) -> int:
        """Return the number of the round after a state, from 1 on."""

    @abstractmethod
    def sensitivity(self, rounds: int) -> float:
        """Return the squared sensitivity of so many rounds, for a clip of 1."""

    @abstractmethod
    def round_noise(self, number: int) -> float:
        """Return the standard deviation of one round's noise, over that of one draw."""

    def draw(self, randomness: Randomness) -> Integers:
        """Draw noise for all sums."""
        return discrete_gaussian(STEPS, self.sums.size, randomness)


class _TreeState(msgspec.Struct):
    """The nodes of the tree that are not part of a larger one yet.

    :param round: how many rounds there were.
    :param keys: of the nodes' noise, by level, from the largest on. Who has them can take it off.
    """

    parameters: Parameters
    round: int = 0
    keys: list[tuple[int, bytes]] = []


class Tree(Correlated):
    """Each node of a binary tree over the rounds has noise; a sum over rounds that of few nodes.

    The noise of a node is drawn again from its key when it is taken off, so that a series keeps
    some keys and no vectors.
    """

    mechanism = "gaussian_tree"

    @property
    def restart_every(self) -> int:
        """After how many rounds a new tree begins; 0: never."""
        return int(self.options.get("restart_every") or 0)

    def round_of(self, state: bytes | None) -> int:
        """Return the number of the round."""
        return self._state(state).round + 1

    @property
    def parameters(self) -> Parameters:
        """What must be the same in all rounds of a series."""
        return msgspec.structs.replace(super().parameters, restart_every=self.restart_every)

    def sensitivity(self, rounds: int) -> float:
        """Return the squared sensitivity; each tree by itself, with all that a device can do."""
        most = self.restart_every or rounds
        whole, rest = divmod(rounds, most)
        total = whole * _tree_sensitivity(most, self.separation)
        return total + (_tree_sensitivity(rest, self.separation) if rest else 0)

    def round_noise(self, number: int) -> float:
        """Return the noise of the nodes that come and go in a round."""
        number = (number - 1) % self.restart_every + 1 if self.restart_every else number
        return math.sqrt(1 + (number & -number).bit_length() - 1)

    def release(self, context: ReleaseContext) -> Release:
        """Add the noise of the new node, and take off that of those that are in it."""
        promise = self._promise(context, done=True)
        state = self._state(context.state)
        keys = list(state.keys)
        if self.restart_every and state.round % self.restart_every == 0:
            keys = []  # the noise of the tree before stays in the sums for ever
        sums = self.sums.copy()
        level = 0
        while keys and keys[-1][0] == level:
            sums -= self.draw(_of_node(keys.pop()[1]))
            level += 1
        key = context.entropy(KEY_BYTES)
        sums += self.draw(_of_node(key))
        kept = _TreeState(self.parameters, state.round + 1, [*keys, (level, key)])
        tensors = self.tensors(sums, self.clients(context.goal_count))
        return Release(tensors, promise, msgspec.msgpack.encode(kept))

    def _state(self, state: bytes | None) -> _TreeState:
        if state is None:
            return _TreeState(self.parameters)
        kept = msgspec.msgpack.decode(state, type=_TreeState)
        self.check_same(kept.parameters)
        return kept


class _MatrixState(msgspec.Struct):
    """The buffers, as bytes of float64, and how many rounds there were."""

    parameters: Parameters
    round: int
    buffers: bytes


class Matrix(Correlated):
    """The noise of a round is that of a matrix with few buffers: the best there is for its size."""

    mechanism = "gaussian_matrix"

    @property
    def parameters(self) -> Parameters:
        """What must be the same in all rounds of a series."""
        return msgspec.structs.replace(
            super().parameters, rounds=self.rounds or 0, buffers=len(self.matrix.scales)
        )

    @property
    def matrix(self) -> BLT:
        """The matrix; it follows from the number of rounds and of buffers."""
        if self.rounds is None:
            raise bad(self.vectors.intrinsic, "the option 'rounds' must be set")
        return fit(self.rounds, int(self.options.get("buffers") or 4))

    def round_of(self, state: bytes | None) -> int:
        """Return the number of the round."""
        return self._state(state)[0] + 1

    def sensitivity(self, rounds: int) -> float:
        """Return the squared sensitivity."""
        return self.matrix.sensitivity(rounds, self.separation)

    def round_noise(self, number: int) -> float:
        """Return the noise of one round."""
        column = self.matrix.inverse_column(number)
        return math.sqrt(float(np.dot(column, column)))

    def release(self, context: ReleaseContext) -> Release:
        """Add new noise, less what the buffers have."""
        promise = self._promise(context, done=True)
        number, buffers = self._state(context.state)
        matrix = self.matrix
        noise = self.draw(Randomness(entropy=context.entropy))
        # What is taken off was drawn in rounds before: no release reveals more for its rounding.
        noise -= np.rint(np.array(matrix.scales) @ buffers).astype(np.int64)
        buffers *= np.array(matrix.decays)[:, None]
        buffers += noise
        tensors = self.tensors(self.sums + noise, self.clients(context.goal_count))
        kept = _MatrixState(self.parameters, number + 1, buffers.astype("<f8").tobytes())
        return Release(tensors, promise, msgspec.msgpack.encode(kept))

    def _state(self, state: bytes | None) -> tuple[int, Floats]:
        """Return how many rounds there were, and the buffers."""
        shape = (len(self.matrix.scales), self.sums.size)
        if state is None:
            return 0, np.zeros(shape)
        kept = msgspec.msgpack.decode(state, type=_MatrixState)
        self.check_same(kept.parameters)
        return kept.round, np.frombuffer(kept.buffers, "<f8").reshape(shape).astype(np.float64)


def resume_series(options: Options, state: bytes | None) -> Resumed:
    """Begin a round of a series; devices need to know nothing of it."""
    return Resumed()


def _of_node(key: bytes) -> Randomness:
    return Randomness(entropy=lambda size: key)
