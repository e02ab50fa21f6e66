"""Tables are brought up to date once, and a release says which tables it works with."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from fcp_core.errors import UsageError
from fcp_core.testing.storage import Item, LaterItem, OtherItem
from fcp_postgres import migrations
from fcp_postgres.migrations import MIGRATIONS, Migration
from fcp_postgres.storage import PostgresStorage

LAST = MIGRATIONS[-1].version
#: What a later release might bring: it adds something, and then takes something away.
ADDS = Migration(LAST + 1, LAST, "CREATE TABLE added (x int)")
TAKES = Migration(LAST + 2, LAST + 1, "DROP TABLE added")


@pytest.fixture
def make(fcp_postgres_server, fcp_postgres_schema):
    schema = fcp_postgres_schema()
    return lambda **options: PostgresStorage(fcp_postgres_server.url, schema, **options)


def use(storage, *bodies):
    async def main():
        await storage.start()
        try:
            return [await storage.transact(body) for body in bodies]
        finally:
            await storage.stop()

    return asyncio.run(main())


def as_release(monkeypatch, *more):
    """Let this be a release with more migrations."""
    known = (*MIGRATIONS, *more)
    for name in ("migrate", "check_version"):
        function = getattr(migrations, name)
        monkeypatch.setattr(
            f"fcp_postgres.storage.{name}",
            lambda connection, schema, function=function: function(connection, schema, known),
        )


def test_they_are_numbered_without_gaps_and_work_with_themselves():
    assert [migration.version for migration in MIGRATIONS] == list(range(1, LAST + 1))
    assert all(migration.works_with <= migration.version for migration in MIGRATIONS)


def test_tables_of_version_1_are_taken_over(make, fcp_postgres_server):
    """What the first release wrote is read, found and replaced, also what is large."""
    schema = make()._settings.schema
    written = (Path(__file__).parent / "data" / "schema-1.sql").read_text()
    fcp_postgres_server.sql(written.replace("first", schema))
    large = Item("large", "g", size=2, data=b"x" * 40_000)

    def look(tx):
        return list(tx.select(Item, group="g")), tx.keys(Item, size=2), tx.get(OtherItem, "o")

    first = Item("a", "g", size=1)
    found = ([first, large], ["large"], OtherItem("o", note="n"))
    upkeep = make().upkeep()
    with pytest.raises(UsageError, match="has tables of version 1, and this release needs"):
        asyncio.run(upkeep.check())
    assert asyncio.run(upkeep.info()).version == 1
    assert asyncio.run(upkeep.migrate()) == 1
    assert asyncio.run(upkeep.check()) == []
    longer = dataclasses.replace(large, data=b"y" * 100_000)
    again, _, now, _, gone = use(
        make(),
        look,
        lambda tx: tx.put(longer),
        look,
        lambda tx: tx.delete(Item, "large"),
        look,
    )
    assert (again, now[0], gone[0]) == (found, [first, longer], [first])
    assert fcp_postgres_server.sql(f"SELECT count(*) FROM {schema}.parts") == "0"


def test_parts_go_with_their_record(make, fcp_postgres_server):
    """Replaced, deleted, or by hand: no bytes stay that no record has."""
    parts = f"SELECT count(DISTINCT id) FROM {make()._settings.schema}.parts"
    large = [Item(name, data=bytes(50_000)) for name in "abc"]
    use(make(), lambda tx: [tx.put(item) for item in large])
    assert fcp_postgres_server.sql(parts) == "3"
    use(
        make(),
        lambda tx: tx.put(dataclasses.replace(large[0], data=bytes(70_000))),
        lambda tx: tx.put(dataclasses.replace(large[1], data=b"small")),
    )
    assert fcp_postgres_server.sql(parts) == "2"
    fcp_postgres_server.sql(f"DELETE FROM {make()._settings.schema}.r_kit_item WHERE key = 'c'")
    assert fcp_postgres_server.sql(parts) == "1"
    items, _ = use(make(), lambda tx: list(tx.select(Item)), lambda tx: tx.delete(Item, "a"))
    assert [(item.name, len(item.data)) for item in items] == [("a", 70_000), ("b", 5)]
    assert fcp_postgres_server.sql(parts) == "0"


def test_a_newer_release_brings_tables_up_to_date_and_the_older_goes_on(make, monkeypatch):
    use(make(), lambda tx: tx.put(Item("a")))
    with monkeypatch.context() as patch:
        as_release(patch, ADDS)
        use(make(), lambda tx: tx.put(Item("b")))
        use(make(), lambda tx: tx.put(Item("c")))  # Not run a second time.
    (names,) = use(make(), lambda tx: [item.name for item in tx.select(Item)])
    assert names == ["a", "b", "c"]


def test_a_release_that_is_too_old_does_not_start(make, monkeypatch):
    with monkeypatch.context() as patch:
        as_release(patch, ADDS, TAKES)
        use(make())
    with pytest.raises(UsageError, match=rf"version {LAST + 2}, which works with .*Upgrade"):
        use(make())


def test_without_migrate_it_is_told_to_run_them(make, monkeypatch):
    with pytest.raises(UsageError, match=r"has no tables.*run 'fcp db migrate'"):
        use(make(migrate=False))
    use(make())
    use(make(migrate=False), lambda tx: tx.put(Item("a")))
    as_release(monkeypatch, ADDS)
    with pytest.raises(UsageError, match=rf"has tables of version {LAST}, and this release needs"):
        use(make(migrate=False))


def test_a_migration_that_fails_leaves_what_there_was(make, monkeypatch, fcp_postgres_server):
    use(make(), lambda tx: tx.put(Item("a")))
    with monkeypatch.context() as patch:
        as_release(patch, ADDS, Migration(LAST + 2, 1, "SELECT 1 / 0"))
        with pytest.raises(UsageError, match="division by zero"):
            use(make())
    assert use(make(), lambda tx: tx.get(Item, "a")) == [Item("a")]


def test_many_start_at_the_same_moment(make):
    async def main():
        storages = [make() for _ in range(6)]
        await asyncio.gather(*(storage.start() for storage in storages))
        await asyncio.gather(
            *(
                storage.transact(lambda tx, n=n: tx.put(Item(str(n))))
                for n, storage in enumerate(storages)
            )
        )
        items = await storages[0].transact(lambda tx: list(tx.select(Item)))
        for storage in storages:
            await storage.stop()
        return items

    assert asyncio.run(main()) == [Item(str(n)) for n in range(6)]


def test_releases_with_other_indexes_run_side_by_side(make):
    """Each finds what the other writes, also what it had written itself before."""

    async def main():
        old, new = make(), make()
        await old.start()
        await old.transact(lambda tx: tx.put(Item("a", "g", size=1)))
        await new.start()
        await new.transact(lambda tx: tx.put(LaterItem("b", "g", colour="blue")))
        # The old one does not know the column that the new one filled.
        await old.transact(lambda tx: tx.put(Item("b", "h", size=2)))
        await old.transact(lambda tx: tx.put(Item("c", "h", size=2)))
        await new.transact(lambda tx: tx.put(LaterItem("d", "h", size=2, colour="blue")))
        found = [
            await new.transact(lambda tx: [i.name for i in tx.select(LaterItem, colour="red")]),
            await new.transact(lambda tx: [i.name for i in tx.select(LaterItem, colour="blue")]),
            await old.transact(lambda tx: [i.name for i in tx.select(Item, size=2)]),
            await old.transact(lambda tx: [i.name for i in tx.select(Item, group="h", size=2)]),
            await new.transact(lambda tx: tx.keys(LaterItem, colour="red")),
            await old.transact(lambda tx: tx.keys(Item, group="h", size=2)),
        ]
        await old.stop()
        await new.stop()
        return found

    by_old, by_new = ["b", "c", "d"], ["a", "b", "c"]
    assert asyncio.run(main()) == [by_new, ["d"], by_old, by_old, by_new, by_old]


def test_a_user_with_few_rights_serves_what_another_migrated(
    make, fcp_postgres_server, fcp_postgres_schema
):
    use(make(), lambda tx: tx.put(Item("a")))
    schema = fcp_postgres_schema()  # Any name that is free.
    taken = make()._settings.schema
    fcp_postgres_server.sql(
        f"CREATE ROLE {schema} LOGIN; GRANT USAGE ON SCHEMA {taken} TO {schema};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {taken} TO {schema}"
    )
    url = fcp_postgres_server.url.replace("fcp@", f"{schema}@")
    storage = PostgresStorage(url, taken, migrate=False)
    assert use(storage, lambda tx: tx.put(Item("b")), lambda tx: tx.get(Item, "a"))[1] == Item("a")


def test_long_values_and_odd_names_are_stored(make):
    from dataclasses import dataclass
    from typing import ClassVar

    from fcp_core.storage.contract import Record

    @dataclass(frozen=True)
    class Odd(Record):
        KIND: ClassVar[str] = 'An "odd" kind; with \N{SNOWMAN} in it' + "x" * 80
        KEY: ClassVar[str] = "name"
        INDEXES: ClassVar[tuple[str, ...]] = ("value",)
        name: str
        value: str

    long = "v" * 100_000
    first, second = Odd("k" * 1000, long), Odd("b", long + "w")
    storage = make()
    _, found, same = use(
        storage,
        lambda tx: [tx.put(first), tx.put(second)],
        lambda tx: list(tx.select(Odd, value=long)),
        lambda tx: tx.get(Odd, first.name),
    )
    assert found == [first]
    assert same == first
    with pytest.raises(ValueError, match="a key has 3000 bytes"):
        use(make(), lambda tx: tx.put(Odd("k" * 3000, "")))
