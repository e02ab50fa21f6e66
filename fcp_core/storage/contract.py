"""The contract of a storage back end: records and transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar


@dataclass(frozen=True)
class Record:
    """Base of what is stored: a frozen dataclass whose fields survive a round trip.

    Fields are str, bytes, int, float, bool, None, or tuples, lists and str-keyed dicts of these.

    :cvar KIND: the name of the collection it lives in.
    :cvar KEY: the field that identifies it; a str.
    :cvar INDEXES: the fields that :meth:`Transaction.select` may filter by.
    """

    KIND: ClassVar[str]
    KEY: ClassVar[str]
    INDEXES: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> str:
        """The value of the key field."""
        return str(getattr(self, self.KEY))


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Transaction(ABC):
    """Reads and writes that take effect together or not at all."""

    @abstractmethod
    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of that key, or None."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Insert or replace a record."""

    @abstractmethod
    def delete(self, kind: type[Record], key: str) -> None:
        """Delete the record of that key, if there is one."""

    @abstractmethod
    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        """Iterate, ordered by key, over the records whose indexed fields have these values.

        :raises ValueError: for a field that is not in the record's INDEXES.
        """


class Storage(ABC):
    """A store of records; its documentation says whether it survives a restart."""

    #: Whether what a transaction wrote survives the end of the process.
    durable: bool = False
    #: A file of this store on this host, if it has one: what the server keeps in small files of its
    #: own, such as its signing keys, lies beside it.
    path: Path | None = None

    async def start(self) -> None:
        """Open files and connections, create what is missing.

        :raises UsageError: if it cannot; the message says what to mend.
        """

    async def stop(self) -> None:
        """Close them. Everything committed stays."""

    @abstractmethod
    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body* in a transaction and return what it returns.

        The body may run twice (after a conflict), so it has no effect outside the transaction. If
        it raises, nothing is written and the exception passes through. When this returns, a durable
        store has the writes on disk.
        """


@dataclass(frozen=True)
class StorageFactory:
    """The factory of a storage back end, which a plugin registers under *name*."""

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], Storage]
