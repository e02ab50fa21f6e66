"""Queries whose groups are summed under masks: tables of integers, and what is read from sums."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from fcp_aggregators.secure_sum import FACTORIES
from fcp_core.aggregation.small_groups import SmallGroups
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.summed_groups import MODULUS, Layout, UnreadableError

pytest.importorskip("sqlglot")

from fcp_core.tasks.sql_query import SqlQuery
from tests.tasks.sql_simulation import answer, masked_answer, oracle, rows_of, stores_of

ROWS = ("app", "version", "seconds")
DEVICES = [
    {"launches": (ROWS, rows)}
    for rows in (
        [("maps", 1, 1.5), ("maps", 1, 2.5), ("it's, a", None, -3.25)],
        [("maps", 2, 700.0), ("mail", 1, 10.0), (None, b"\0,'", 4.0)],
        [("maps", 1, None), ("mail", 1, 20.0), ("a\0b", 1.5, 1.0)],
        [],
    )
]


@pytest.mark.parametrize(
    ("sql", "truth"),
    [
        ("SELECT app, COUNT(*) AS n FROM launches GROUP BY app ORDER BY n DESC, app", None),
        ("SELECT DISTINCT app, version FROM launches ORDER BY 1, 2", None),
        (
            "SELECT app, AVG(CLAMP(seconds, -5, 600)) AS a, SUM(seconds > 2) AS s FROM launches"
            " GROUP BY 1 ORDER BY 1",
            "SELECT app, AVG(MIN(MAX(seconds, -5), 600)), SUM(seconds > 2) FROM launches"
            " GROUP BY 1 ORDER BY 1",
        ),
        ("SELECT COUNT(*), COUNT(seconds) FROM launches", None),
        (
            "SELECT app, DEVICES() AS d FROM launches GROUP BY app HAVING DEVICES() >= 2"
            " ORDER BY 1",
            "SELECT 'mail', 2 UNION ALL SELECT 'maps', 3",
        ),
    ],
)
def test_answers_are_those_of_one_database(tmp_path, sql, truth):
    table = masked_answer(SqlQuery(sql, masked=True, capacity=20), stores_of(tmp_path, DEVICES))
    found, wanted = rows_of(table), oracle(truth or sql, DEVICES)
    assert len(found) == len(wanted)
    for row, expected in zip(found, wanted, strict=True):
        for one, other in zip(row, expected, strict=True):
            if isinstance(one, str):
                assert one == (f"X'{other.hex()}'" if isinstance(other, bytes) else str(other))
            else:
                assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_the_rows_of_too_few_devices_are_not_shown_without_groups_either(tmp_path, masked):
    columns = ("app", "seconds")
    devices = [[("maps", 1.0), ("mail", 4.0)], [("mail", 6.0)], []]
    stores = stores_of(tmp_path, [{"launches": (columns, rows)} for rows in devices])
    reply = masked_answer if masked else answer
    for app, wanted in (("mail", [(2, 5.0)]), ("maps", []), ("none", [])):
        sql = f"SELECT COUNT(*), AVG(CLAMP(seconds, 0, 9)) FROM launches WHERE app = '{app}'"
        for query in (
            SqlQuery(f"{sql} HAVING DEVICES() >= 2", masked=masked),
            SqlQuery(sql, min_devices=2, masked=masked),
        ):
            found = rows_of(reply(query, stores))
            assert found == [pytest.approx(row, rel=1e-6) for row in wanted]


def test_what_was_stored_before_all_rows_were_a_group_can_be_read():
    query = SqlQuery("SELECT COUNT(*) FROM t HAVING DEVICES() >= 2")
    stored = write_checkpoint({"COUNT(*)": np.array([7], np.int64)}, "federated_compute")
    assert rows_of(query.table(stored)) == [(7,)]


def test_the_ends_and_quantiles_are_read_from_buckets(tmp_path):
    sql = (
        "SELECT app, MIN(seconds), MAX(seconds), APPROX_QUANTILE(seconds, 0.5, 0.02)"
        " FROM launches WHERE app IN ('maps', 'mail') GROUP BY app ORDER BY app"
    )
    table = masked_answer(SqlQuery(sql, masked=True, capacity=40), stores_of(tmp_path, DEVICES))
    (mail, *of_mail), (maps, *of_maps) = rows_of(table)
    assert (mail, maps) == ("mail", "maps")
    assert of_mail == pytest.approx([10, 20, 10], rel=0.11)
    assert of_maps == pytest.approx([1.5, 700, 2.5], rel=0.11)
    assert of_maps[2] == pytest.approx(2.5, rel=0.021)


def test_a_device_counts_within_its_bounds_and_long_keys_are_one_group(tmp_path):
    rows = [("x" * 60, 1, 1.0)] * 3 + [("y" * 60, 1, 1.0)] * 4 + [("z", 1, 9.0)] * 20
    stores = stores_of(tmp_path, [{"launches": (ROWS, rows)}])
    sql = (
        "SELECT app, COUNT(*), TOTAL(CLAMP(seconds, 0, 2)) FROM launches GROUP BY app ORDER BY app"
    )
    table = masked_answer(SqlQuery(sql, masked=True, max_rows=5), stores)
    assert [tuple(row) for row in rows_of(table)] == [
        ("(longer)", 7, pytest.approx(7)),
        ("z", 5, pytest.approx(10)),
    ]


def test_an_answer_with_too_many_groups_says_so(tmp_path):
    rows = [(f"app {number}", 1, 1.0) for number in range(300)]
    stores = stores_of(tmp_path, [{"launches": (ROWS, rows)}])
    query = SqlQuery("SELECT app, COUNT(*) FROM launches GROUP BY app", masked=True, capacity=100)
    with pytest.raises(
        StatusError, match=r"about .* groups of the query's capacity of 100"
    ) as said:
        masked_answer(query, stores)
    assert said.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("sql", "options", "words"),
    [
        (
            "SELECT SUM(x) FROM t",
            {},
            r"under masks has room for what is bounded.*CLAMP\(x, 0, 100\)",
        ),
        ("SELECT SUM(CLAMP(x, 0, 1e12)) FROM t", {}, "lower max_rows"),
        ("SELECT APPROX_DISTINCT(x) FROM t", {}, "write SELECT DISTINCT x and count"),
        ("SELECT COUNT(*) FROM t", {"epsilon": 1.0}, "Ask with one of them"),
        ("SELECT COUNT(*) FROM t", {"minimum_rows": 2}, "nobody sees how many rows"),
        ("SELECT a FROM t GROUP BY a", {"capacity": 100_000}, "Lower capacity or key_bytes"),
    ],
)
def test_what_cannot_be_summed_under_masks_is_named(sql, options, words):
    with pytest.raises(UsageError, match=words):
        SqlQuery(sql, masked=True, **options).lowered()


@pytest.mark.parametrize("capacity", [1, 10, 100, 1000])
def test_what_there_is_room_for_is_read(capacity):
    draw = random.Random(capacity)
    layout = Layout(capacity, 12, 2, "salt")
    known = [draw.randbytes(draw.randrange(12)) + b"." for _ in range(capacity)]
    sums, wanted = np.zeros(layout.size, np.int64), {}
    for _ in range(3):
        groups = {
            key: (draw.randrange(-1000, 1000), draw.randrange(1 << 40))
            for key in draw.sample(known, draw.randrange(capacity + 1))
        }
        sums = (sums + layout.write(groups)) % MODULUS
        for key, numbers in groups.items():
            before = wanted.get(key, (0, 0, 0))
            wanted[key] = tuple(a + b for a, b in zip(before, (1, *numbers), strict=True))
    found = layout.read(sums)
    assert {group.key: (group.devices, *group.numbers) for group in found} == wanted
    assert len(found) == len(wanted)


def test_what_is_no_sum_of_tables_is_not_read():
    layout = Layout(10, 8, 1)
    table = layout.write({b"a": (1,), b"b": (2,)})
    for place in range(0, layout.size, 7):
        wrong = table.copy()
        wrong[place] += 3
        with pytest.raises(UnreadableError):
            layout.read(wrong)
    with pytest.raises(ValueError, match="instead of"):
        layout.read(table[1:])


def test_small_groups_leave_the_sum_before_it_is_a_result():
    layout = Layout(4, 8, 1, "salt")
    small = SmallGroups(layout, 2)
    spec = TensorSpec("groups", DataType.INT64, (layout.size,))
    given = Intrinsic("federated_secure_modular_sum", (spec,), (spec,), small.parameters())
    options = {"allow_unprotected": True}
    (factory,) = (f for f in FACTORIES if given.uri in f.uris)

    def reported(*devices):
        total = factory.make(given, options)
        for groups in devices:
            total.validate([layout.write(groups)])
            total.accumulate([layout.write(groups)])
        again = factory.load(given, options, total.dump())
        return again.report()[0]

    (group,) = layout.read(reported({b"a": (1,), b"b": (7,)}, {b"a": (-3,)}, {b"c": (5,)}))
    assert (group.key, group.devices, group.numbers) == (b"a", 2, (-2,))
    # Nobody knows which of them are small.
    with pytest.raises(StatusError, match=r"about .* groups of the query's capacity of 4") as said:
        reported({bytes([n]): (0,) for n in range(1, 200)})
    assert said.value.code is Code.FAILED_PRECONDITION
    modulus, table, salt = small.parameters()
    for wrong in ((modulus, salt, table, table), (modulus, salt), (table, salt, modulus)):
        with pytest.raises(StatusError) as said:
            factory.make(replace(given, parameters=wrong), options)
        assert said.value.code is Code.INVALID_ARGUMENT
