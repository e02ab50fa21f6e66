"""The contract of a storage back end: records and transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from fcp_core.errors import UsageError
from fcp_core.protocol.joining import join
from fcp_core.protocol.status import Code, StatusError
from fcp_core.storage.upkeep import Upkeep


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


class StorageError(StatusError):
    """The storage cannot do it now: its disk is full, a lock is held, its server is gone.

    What was to be written may be written or not, as after an answer that was lost on its way: who
    tries again reads first, or writes what may be written twice. Its code is UNAVAILABLE.

    :param message: what is wrong, and of which storage, for the operator.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNAVAILABLE, message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from another process."""
        return (StorageError, (self.message,))


class ChangedError(Exception):
    """A record that was to be new is there, or one that was to go is not: nothing was written.

    :param key: its key.
    """

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"the {kind} {key!r} is not what the transaction took for granted")


#: What will be read: a kind with a key, as ``get`` takes it, or with values, as ``keys`` does.
Read: TypeAlias = "tuple[type[Record], str | Mapping[str, Any]]"


class Transaction(ABC):
    """Reads and writes that take effect together or not at all."""

    def expect(self, *reads: Read) -> None:
        """Say what will be read: a storage to which each question is a way may ask all at once.

        Whoever says nothing, or too much, reads the same.
        """

    @abstractmethod
    def now(self) -> float:
        """Return the storage's time, in seconds since 1970.

        It is one clock for all who share the storage, whatever their hosts' clocks say.
        """

    @abstractmethod
    def get(self, kind: type[R], key: str) -> R | None:
        """Return the record of that key, or None."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Insert or replace a record."""

    def put_pieces(self, record: Record, pieces: Sequence[bytes | memoryview]) -> None:
        """Insert or replace a record whose last field is bytes, which are given in pieces.

        A storage that need not join them does better than this. They are not used afterwards.

        :param record: with no bytes in that field.
        """
        last = fields(record)[-1].name
        self.put(replace(record, **{last: join(pieces)}))

    @abstractmethod
    def delete(self, kind: type[Record], key: str) -> None:
        """Delete the record of that key, if there is one."""

    def insert(self, record: Record) -> None:
        """Insert a record that is not there; nothing else is done to it in this transaction.

        A storage that finds that out as it writes does better than this: whoever reads that a
        record is not there may conflict with all who write others beside it.

        :raises ChangedError: if it is there; ``transact`` may raise it instead.
        """
        if self.get(type(record), record.key) is not None:
            raise ChangedError(record.KIND, record.key)
        self.put(record)

    def remove(self, kind: type[Record], key: str) -> None:
        """Delete a record that is there; nothing else is done to it in this transaction.

        As with :meth:`insert`, a storage may do better.

        :raises ChangedError: if it is not there; ``transact`` may raise it instead.
        """
        if self.get(kind, key) is None:
            raise ChangedError(kind.KIND, key)
        self.delete(kind, key)

    @abstractmethod
    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        """Iterate, ordered by key, over the records whose indexed fields have these values.

        :raises ValueError: for a field that is not in the record's INDEXES.
        """

    def keys(self, kind: type[Record], **equals: Any) -> list[str]:
        """Return the keys of what :meth:`select` iterates over, in order.

        A storage that need not read the records for that does better than this.
        """
        return [record.key for record in self.select(kind, **equals)]


class Storage(ABC):
    """A store of records; its documentation says whether it survives a restart."""

    #: Whether what a transaction wrote survives the end of the process.
    durable: bool = False
    #: Whether servers on several hosts may use it at the same time.
    shared: bool = False
    #: A file of this store on this host, if it has one: what the server keeps in small files of its
    #: own, such as its signing keys, lies beside it.
    path: Path | None = None

    async def start(self) -> None:
        """Open files and connections, create what is missing.

        :raises UsageError: if it cannot; the message says what to mend.
        """

    async def stop(self) -> None:
        """Close them. Everything committed stays."""

    def upkeep(self) -> Upkeep | None:
        """Return what looks after the stored records, without a start; None if nothing does."""
        return None

    @abstractmethod
    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body* in a transaction and return what it returns.

        The body may run twice (after a conflict), so it has no effect outside the transaction. If
        it raises, nothing is written and the exception passes through. When this returns, a durable
        store has the writes on disk.

        :raises StorageError: if it cannot be done now; never an exception of the driver's for that.
        """


async def check_contract(storage: Storage) -> float:
    """Check that a storage that was started is of this release's contract; return its time.

    :raises UsageError: if its transactions lack something; the message says what.
    """
    try:
        now: object = await storage.transact(lambda tx: tx.now())
    except (AttributeError, NotImplementedError, TypeError) as error:
        now = error
    if not isinstance(now, float | int):
        raise UsageError(
            f"the storage {type(storage).__name__} was written for an older release: its "
            f"transactions need a method now() that returns its time in seconds since 1970, and "
            f"there is {now!r}; upgrade its plugin."
        )
    return now


@dataclass(frozen=True)
class StorageFactory:
    """The factory of a storage back end, which a plugin registers under *name*."""

    name: str
    summary: str
    make: Callable[[Mapping[str, Any]], Storage]
