"""The ``memory`` storage: records in dictionaries, gone when the process ends."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from fcp_core.storage.codec import decode, encode
from fcp_core.storage.contract import R, Record, Storage, StorageFactory, T, Transaction


class _Table:
    """The records of one kind, and for each indexed field the keys by value."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._keys: dict[str, dict[Any, set[str]]] = defaultdict(lambda: defaultdict(set))

    def replace(self, key: str, record: Record | None) -> None:
        old = self.records.pop(key, None)
        if old is not None:
            for name in old.INDEXES:
                keys = self._keys[name][getattr(old, name)]
                keys.discard(key)
                if not keys:
                    del self._keys[name][getattr(old, name)]
        if record is not None:
            self.records[key] = record
            for name in record.INDEXES:
                self._keys[name][getattr(record, name)].add(key)

    def find(self, equals: Mapping[str, Any]) -> set[str]:
        if not equals:
            return set(self.records)
        found = [self._keys[name].get(value, set()) for name, value in equals.items()]
        return set.intersection(*sorted(found, key=len))


class _MemoryTransaction(Transaction):
    """Reads through its own writes, which reach the tables when it commits."""

    def __init__(self, tables: Mapping[str, _Table]) -> None:
        self._tables = tables
        self._writes: dict[str, dict[str, Record | None]] = defaultdict(dict)

    def now(self) -> float:
        return time.time()

    def get(self, kind: type[R], key: str) -> R | None:
        writes = self._writes[kind.KIND]
        record = writes[key] if key in writes else self._tables[kind.KIND].records.get(key)
        return record  # type: ignore[return-value]

    def put(self, record: Record) -> None:
        if not all(_is_immutable(getattr(record, field.name)) for field in fields(record)):
            # What the caller changes later must not change what is stored.
            record = decode(type(record), encode(record))
        self._writes[record.KIND][record.key] = record

    def delete(self, kind: type[Record], key: str) -> None:
        self._writes[kind.KIND][key] = None

    def select(self, kind: type[R], **equals: Any) -> Iterator[R]:
        for name in equals:
            if name not in kind.INDEXES:
                raise ValueError(f"{kind.KIND} is not indexed by {name}, only by {kind.INDEXES}")
        writes = self._writes[kind.KIND]
        table = self._tables[kind.KIND]
        found: dict[str, Any] = {
            key: table.records[key] for key in table.find(equals) if key not in writes
        }
        found |= {
            key: record
            for key, record in writes.items()
            if record is not None and all(getattr(record, n) == v for n, v in equals.items())
        }
        return iter([found[key] for key in sorted(found)])

    def commit(self) -> None:
        for kind, writes in self._writes.items():
            for key, record in writes.items():
                self._tables[kind].replace(key, record)


class MemoryStorage(Storage):
    """Keeps records in this process; transactions run one after the other."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = defaultdict(_Table)
        self._lock = threading.Lock()

    async def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run *body* here and now; it must not block for long."""
        with self._lock:
            transaction = _MemoryTransaction(self._tables)
            result = body(transaction)
            transaction.commit()
            return result


def factory() -> StorageFactory:
    """Return the factory that the plugin registers."""
    return StorageFactory(
        name="memory",
        summary="in this process; a restart forgets everything",
        make=lambda options: MemoryStorage(),
    )


def _is_immutable(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_immutable(item) for item in value)
    return value is None or isinstance(value, str | bytes | int | float)
