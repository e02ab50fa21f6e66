"""Who shares masks and keys with whom: everybody with everybody, or neighbours on a circle.

Clients have ids from 0. A client's neighbours are a list, in which it is itself; where lists and
messages go side by side, they are in its order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fcp_secagg.primitives import Secrets


class Graph(ABC):
    """The neighbours of each client.

    :ivar size: how many clients there are.
    :ivar degree: how long each list is; a client counts as its own neighbour.
    :ivar threshold: how many shares reconstruct a key.
    """

    def __init__(self, size: int, degree: int, threshold: int) -> None:
        if not 2 <= threshold <= degree <= size:
            raise ValueError(
                f"a graph of {size} clients with {degree} neighbours each cannot have the "
                f"threshold {threshold}"
            )
        self.size, self.degree, self.threshold = size, degree, threshold

    @abstractmethod
    def neighbours(self, client: int) -> Sequence[int]:
        """Return a client's list."""

    @abstractmethod
    def index(self, client: int, other: int) -> int | None:
        """Return where another client is in a client's list, or None."""

    @abstractmethod
    def adds(self, client: int, other: int) -> bool:
        """Whether a client adds the mask that it shares with a neighbour; otherwise it subtracts.

        It adds those of the neighbours that come before itself in its list.
        """


class FullGraph(Graph):
    """Everybody is everybody's neighbour, in the order of the ids."""

    def __init__(self, size: int, threshold: int) -> None:
        super().__init__(size, size, threshold)

    def neighbours(self, client: int) -> Sequence[int]:
        """Return a client's list."""
        return range(self.size)

    def index(self, client: int, other: int) -> int | None:
        """Return where another client is in a client's list, or None."""
        return other if 0 <= other < self.size else None

    def adds(self, client: int, other: int) -> bool:
        """Whether a client adds the mask that it shares with a neighbour."""
        return other < client


class HararyGraph(Graph):
    """Clients on a circle, each with those up to some steps away on both sides.

    :param order: the ids in the order of the circle.
    :param degree: odd: as many on either side, and the client itself.
    """

    def __init__(self, order: Sequence[int], degree: int, threshold: int) -> None:
        super().__init__(len(order), degree, threshold)
        if degree % 2 == 0:
            raise ValueError(f"the degree must be odd, not {degree}")
        if sorted(order) != list(range(len(order))):
            raise ValueError("the circle must have each client once")
        self._order = tuple(order)
        self._half = degree // 2
        self._place = {client: place for place, client in enumerate(order)}

    def neighbours(self, client: int) -> Sequence[int]:
        """Return a client's list."""
        first = self._place[client] - self._half
        return [self._order[(first + step) % self.size] for step in range(self.degree)]

    def index(self, client: int, other: int) -> int | None:
        """Return where another client is in a client's list, or None."""
        if other not in self._place:
            return None
        step = (self._place[other] - self._place[client] + self._half) % self.size
        return step if step < self.degree else None

    def adds(self, client: int, other: int) -> bool:
        """Whether a client adds the mask that it shares with a neighbour."""
        step = self.index(client, other)
        return step is not None and step < self._half


def shuffled(size: int, secrets: Secrets) -> list[int]:
    """Return the ids in an order that nobody can predict."""
    order = list(range(size))
    for last in range(size - 1, 0, -1):
        other = _below(last + 1, secrets)
        order[last], order[other] = order[other], order[last]
    return order


def _below(limit: int, secrets: Secrets) -> int:
    usable = 2**64 // limit * limit
    while True:
        number = int.from_bytes(secrets(8), "big")
        if number < usable:
            return number % limit
