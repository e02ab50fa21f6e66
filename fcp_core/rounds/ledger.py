"""The contract of a ledger: what may be released from a population, and what was.

A ledger's accounts lie in the storage, and change in the transaction that ends a task and stores
its result: all of it is written, or nothing. So its methods are functions of what they are given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.specification import TaskSpec


class ReleaseRefusedError(StatusError):
    """A result may not be released; its task ends with this error.

    :param message: a sentence that says why, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (ReleaseRefusedError, (self.message,))


@dataclass(frozen=True)
class Planned:
    """The release that a task is to end with.

    :param spec: without its large parts.
    :param created: when the task was submitted, in seconds since 1970.
    :param costs: the events of its aggregators with noise, and those that its specification
        declares; none: nothing of it has noise.
    :param exact: the names of its aggregators whose results have none.
    :param options: of its aggregators with noise, by their names.
    :param series: that it goes on with; of one series one task is open at a time.
    """

    spec: TaskSpec
    created: float
    costs: tuple[Mapping[str, Any], ...] = ()
    exact: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    series: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Account:
    """An account as it is stored; version 0 and no data if it is not there yet."""

    name: str
    version: int = 0
    data: bytes = b""


class Ledger(ABC):
    """Guards what is released. A plugin registers one; all of them are asked.

    :cvar name: one word.
    :cvar summary: a line for ``fcp plugins``.
    """

    name: str
    summary: str

    @abstractmethod
    def accounts(self, planned: Planned) -> Sequence[str]:
        """Return the names of the accounts that the release changes, always the same ones.

        They begin with the ledger's name and a slash.
        """

    @abstractmethod
    def check(
        self, planned: Planned, accounts: Mapping[str, Account], others: Sequence[Planned]
    ) -> Iterable[str]:
        """Return what is against a task when it is submitted, a sentence each.

        :param accounts: those that :meth:`accounts` names.
        :param others: the tasks of the population that are open.
        """

    @abstractmethod
    def book(self, planned: Planned, accounts: Mapping[str, Account]) -> Mapping[str, bytes]:
        """Return what becomes of the accounts with the release. May be called twice.

        :param planned: with the costs that the release has had.
        :raises ReleaseRefusedError: if it must not be released.
        """

    def statement(self, planned: Planned) -> Mapping[str, Any]:
        """Return what devices are told of a task, as JSON has it; nothing: they are told nothing.

        Our client asks for ``epsilon`` and ``delta``, what the release costs a device at most, and
        for ``series``, the name of the series of which that is the whole cost so far.
        """
        return {}

    def verify(self, population: str, accounts: Mapping[str, Account]) -> None:
        """Check the accounts of a population before it is served.

        :param accounts: all of its accounts in this ledger.
        :raises UsageError: if they are not what they must be: a backup was restored, for instance.
        """

    def figures(self, population: str, accounts: Mapping[str, Account]) -> Mapping[str, float]:
        """Return what is shown of a population's accounts: what :meth:`booked` returns of them.

        :param accounts: all of its accounts in this ledger, in the order of their names.
        """
        return {}

    def booked(self, population: str, accounts: Mapping[str, Account]) -> Mapping[str, float]:
        """Note what was written; called after the transaction, and not if the server dies.

        :returns: figures for the metric ``fcp_ledger``, by a name that begins with the ledger's.
        """
        return {}
