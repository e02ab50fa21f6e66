"""State machines with an enforced table of transitions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

S = TypeVar("S")


class InvalidTransition(Exception):  # noqa: N818 (it names what happened)
    """A machine was asked for something that cannot happen in its state."""


class Machine(Generic[S]):
    """Has a state, which only :meth:`move` changes, and only as the table allows.

    :cvar MOVES: the states that may follow each state.
    """

    __slots__ = ("_state",)

    MOVES: ClassVar[Mapping[Any, Collection[Any]]]

    def __init__(self, state: S) -> None:
        self._state = state

    if TYPE_CHECKING:

        @property
        def state(self) -> S:
            """The current state."""
            raise NotImplementedError

    else:
        # It is asked for everywhere: the same without a call of a function of ours.
        state = property(attrgetter("_state"), doc="The current state.")

    def move(self, state: S) -> None:
        """Change the state.

        :raises InvalidTransition: if the table does not allow it.
        """
        if state not in self.MOVES[self._state]:
            raise InvalidTransition(f"{self!r} cannot go from {self._state} to {state}")
        self._state = state
