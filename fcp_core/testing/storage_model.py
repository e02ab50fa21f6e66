"""A storage beside a dictionary that must agree with it: the state machine of the storage kit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings as Settings  # noqa: N812
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fcp_core.storage.contract import Transaction
from fcp_core.testing.storage_records import (
    GROUPS,
    SIZES,
    Expected,
    Item,
    OtherItem,
    groups,
    items,
    keys,
    sizes,
)
from fcp_core.testing.storage_sharing import SharingLaws

T = TypeVar("T")


def compare_with_dictionary(kit: SharingLaws, settings: Settings, folder: Path) -> None:
    """Run random transactions on storages of a kit and on a dictionary, and compare.

    :param folder: where the storages keep their files.
    """
    numbers = itertools.count()

    class Model(_Model):
        def __init__(self) -> None:
            super().__init__(kit, folder / f"store{next(numbers)}")

    run_state_machine_as_test(Model, settings=settings)


class _Model(RuleBasedStateMachine):
    """A storage beside a dictionary that must agree with it."""

    def __init__(self, kit: SharingLaws, path: Path) -> None:
        super().__init__()
        self.kit = kit
        self.path = path
        self.model: dict[tuple[type[Item], str], Item] = {}
        self.loop = asyncio.new_event_loop()
        self.storage = kit.make_storage(path)
        self.loop.run_until_complete(self.storage.start())

    def teardown(self) -> None:
        self.loop.run_until_complete(self.storage.stop())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def transact(self, body: Callable[[Transaction], T]) -> T:
        return self.loop.run_until_complete(self.storage.transact(body))

    @rule(
        changes=st.lists(st.tuples(st.booleans(), st.booleans(), items), max_size=6),
        fail=st.booleans(),
    )
    def write(self, changes: list[tuple[bool, bool, Item]], fail: bool) -> None:
        model = dict(self.model)

        def body(tx: Transaction) -> None:
            # The body may run twice, so it starts from what was before.
            model.clear()
            model.update(self.model)
            for other, delete, item in changes:
                kind = OtherItem if other else Item
                if delete:
                    tx.delete(kind, item.name)
                    model.pop((kind, item.name), None)
                else:
                    record = kind(**vars(item))
                    tx.put(record)
                    model[kind, item.name] = record
            if fail:
                raise Expected

        if fail:
            with pytest.raises(Expected):
                self.transact(body)
        else:
            self.transact(body)
            self.model = model

    @rule(name=keys, other=st.booleans())
    def get(self, name: str, other: bool) -> None:
        kind = OtherItem if other else Item

        def body(tx: Transaction) -> Any:
            tx.expect((kind, name), (kind, {}))
            return tx.get(kind, name), tx.keys(kind)

        stored = [item.key for item in self.expected(kind)]
        assert self.transact(body) == (self.model.get((kind, name)), stored)

    @rule(group=groups, size=sizes, other=st.booleans())
    def select_by_two(self, group: str, size: int, other: bool) -> None:
        kind = OtherItem if other else Item
        stored, keys, every = self.transact(
            lambda tx: (
                list(tx.select(kind, group=group, size=size)),
                tx.keys(kind, group=group, size=size),
                tx.keys(kind),
            )
        )
        assert stored == self.expected(kind, group=group, size=size)
        assert keys == [item.key for item in stored]
        assert every == [item.key for item in self.expected(kind)]

    @precondition(lambda self: self.kit.durable)
    @rule()
    def reopen(self) -> None:
        self.loop.run_until_complete(self.storage.stop())
        self.storage = self.kit.make_storage(self.path)
        self.loop.run_until_complete(self.storage.start())

    @invariant()
    def same_records(self) -> None:
        queries: list[tuple[type[Item], dict[str, Any]]] = []
        for kind in (Item, OtherItem):
            queries.append((kind, {}))
            queries += [(kind, {"group": group}) for group in GROUPS]
            queries += [(kind, {"size": size}) for size in SIZES]
        answers = self.transact(
            lambda tx: [list(tx.select(kind, **equals)) for kind, equals in queries]
        )
        assert answers == [self.expected(kind, **equals) for kind, equals in queries]

    def expected(self, kind: type[Item], **equals: Any) -> list[Item]:
        return [
            item
            for (of, _), item in sorted(self.model.items(), key=lambda entry: entry[0][1])
            if of is kind and all(getattr(item, name) == value for name, value in equals.items())
        ]
