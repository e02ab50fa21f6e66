"""What operators do with stored records: look, check, bring up to date, keep a copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KindSize:
    """How much there is of a kind of record.

    :param size: in bytes, with what the storage needs beside the records if it knows that.
    """

    kind: str
    records: int
    size: int


@dataclass(frozen=True)
class StorageInfo:
    """What a storage says of itself.

    :param place: where it is, without any secret.
    :param version: of its schema; 0 if there is nothing yet.
    :param newest: the version that this release would make of it.
    :param size: of everything, in bytes.
    :param now: its time, in seconds since 1970.
    :param kinds: every kind that it has, also those that this release does not know.
    """

    place: str
    version: int
    newest: int
    size: int
    now: float
    kinds: tuple[KindSize, ...]


class Upkeep(ABC):
    """Looks after what is stored, whether or not servers use it at the time.

    Only :meth:`migrate` changes anything. Every method opens and closes what it needs, and raises
    :class:`UsageError` if it cannot: there is nothing, or it is somebody else's.
    """

    @abstractmethod
    async def info(self) -> StorageInfo:
        """Return what there is."""

    @abstractmethod
    def scan(self, only: str | None = None) -> AsyncIterator[tuple[str, str, bytes]]:
        """Iterate over the records as they are at one moment: their kinds, keys and bytes.

        :param only: those of this kind; None: all.
        """

    @abstractmethod
    async def check(self) -> list[str]:
        """Check the storage's own structures; return a sentence for each thing that is wrong."""

    @abstractmethod
    async def migrate(self) -> int:
        """Bring the schema up to date; return its version before, 0 if there was none."""

    @abstractmethod
    async def backup(self, target: Path) -> None:
        """Write a copy, as of one moment, to a file that does not exist.

        :raises UsageError: if it cannot; if another program is to be used, how.
        """
