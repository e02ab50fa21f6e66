"""Queries in SQL with an epsilon: what is asked of the server, and answers with their errors."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest

from fcp_core.admin.messages import Task
from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.server import Server
from fcp_core.testing.servers import RunningServer, make_device, run_devices

pytest.importorskip("sqlglot")

from fcp_core.tasks.plots import bar_chart
from fcp_core.tasks.sql_query import SqlQuery
from fcp_privacy.plugin import PrivacyPlugin
from tests.tasks.sql_simulation import rows_of, stores_of

DEVICES = 40
#: Each device launches maps twice, and mail for ten or for a thousand seconds; one has an app of
#: its own.
TABLES = [
    {
        "launches": (
            ("app", "seconds"),
            [
                ("maps", 1.5),
                ("maps", 2.5),
                ("mail", 10.0 if number % 4 else 1000.0),
                *([("own", 1.0)] if number == 7 else []),
            ],
        )
    }
    for number in range(DEVICES)
]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask devices; return the table, and the names and deviations of the noise."""
    counted = itertools.count(1)
    monkeypatch.setattr(
        "fcp_core.server.services.releases.urandom",
        lambda size: hashlib.shake_256(f"5/{next(counted)}".encode()).digest(size),
    )
    plugins = Plugins.load(
        environ={},
        overrides={"retry_min": "0s", "retry_max": "0s"},
        extra=[PrivacyPlugin()],
    )
    stores = stores_of(tmp_path, TABLES)
    with RunningServer(Server(plugins, populations=["people"])) as server:

        def ask(sql, **options):
            query = SqlQuery(sql, **{"epsilon": 60.0, "max_groups": 3, "max_rows": 2, **options})
            spec = query.to_spec(population="people", name="question", goal_count=DEVICES)
            task = server.submit(spec)
            made = [make_device(server.url, {}, stores={query.collection: s}) for s in stores]
            run_devices(made)
            result = write_checkpoint(dict(server.result(task)), "federated_compute")
            status = Task.of(server.status(task))
            noise = {each["output"]: each["stddev"] for each in status.release["noise"]}
            return SqlQuery.answer(status.query, result, status.release), noise

        yield ask


@pytest.mark.slow
def test_answers_are_near_the_truth_and_say_how_near(ask):
    table, noise = ask(
        "SELECT app, COUNT(*) AS n, SUM(CLAMP(seconds, 0, 20)) AS s,"
        " AVG(CLAMP(seconds, 0, 20)) AS a FROM launches GROUP BY app ORDER BY app",
        epsilon=300.0,
    )
    names = [column.name for column in table.columns]
    assert names == ["app", "n", "n stddev", "s", "s stddev", "a", "a stddev"]
    # The app of a single device is not there.
    assert [row[0] for row in rows_of(table)] == ["mail", "maps"]
    for app, n, n_off, s, s_off, a, a_off in rows_of(table):
        count, total = {"maps": (80, 160), "mail": (40, 30 * 10 + 10 * 20)}[app]
        off = noise["COUNT(*)"], noise["TOTAL(CLAMP(seconds, 0, 20))"]
        assert (n_off, s_off) == pytest.approx(off)
        assert abs(n - count) < 12 * n_off
        assert abs(s - total) < 12 * s_off
        counted = noise["COUNT(CLAMP(seconds, 0, 20))"]
        assert a_off == pytest.approx(math.hypot(s_off / count, a * counted / count), rel=0.1)
        assert abs(a - total / count) < 12 * a_off
    assert "<path" in bar_chart(table, "launches", "n")


@pytest.mark.slow
def test_a_closed_domain_shows_all_of_it(ask):
    table, _ = ask(
        "SELECT app, DEVICES() AS d FROM launches GROUP BY app ORDER BY d DESC",
        domain={"app": ["maps", "own", "nobody's", None]},
        delta=0.0,
    )
    found = {app: d for app, d, _ in rows_of(table)}
    assert set(found) == {"maps", "own", "nobody's", None}
    assert abs(found["maps"] - DEVICES) < 5
    assert all(abs(found[app]) < 5 for app in ("own", "nobody's", None))


@pytest.mark.slow
def test_groups_are_chosen_by_their_devices(ask):
    table, _ = ask(
        "SELECT app, COUNT(*) AS n FROM launches GROUP BY app HAVING DEVICES() >= 5 ORDER BY app"
    )
    assert [row[0] for row in rows_of(table)] == ["mail", "maps"]


@pytest.mark.slow
def test_quantiles_are_read_from_buckets_with_noise(ask):
    table, _ = ask(
        "SELECT app, APPROX_QUANTILE(seconds, 0.4), APPROX_QUANTILE(seconds, 0.9) FROM launches"
        " GROUP BY app ORDER BY app",
        epsilon=200.0,
    )
    (mail, *mail_found), (maps, *maps_found) = rows_of(table)
    assert (mail, maps) == ("mail", "maps")
    assert mail_found == pytest.approx([10.0, 1000.0], rel=0.11)
    assert maps_found == pytest.approx([1.5, 2.5], rel=0.11)


@pytest.mark.slow
def test_the_ends_are_of_what_enough_devices_have(ask):
    """The app that one device has is not there, and neither is what one device says of another."""
    table, _ = ask(
        "SELECT app, MIN(seconds), MAX(seconds) FROM launches GROUP BY app ORDER BY app",
        epsilon=200.0,
    )
    (mail, *of_mail), (maps, *of_maps) = rows_of(table)
    assert (mail, maps) == ("mail", "maps")
    assert of_mail == pytest.approx([10.0, 1000.0], rel=0.11)
    assert of_maps == pytest.approx([1.5, 2.5], rel=0.11)


@pytest.mark.slow
def test_what_is_read_from_buckets_alone_has_all_of_the_budget(ask):
    for sql in (
        "SELECT MIN(x), MAX(x), APPROX_QUANTILE(x, 0.5) FROM t",
        "SELECT a, MAX(x) FROM t GROUP BY a",
    ):
        (only,) = SqlQuery(sql, epsilon=1.0).lowered().intrinsics
        assert {p.name: p.value.tolist() for p in only.parameters}["epsilon"] == 1.0
    # Of one device nothing is shown; without keys there is a row all the same.
    table, _ = ask("SELECT MAX(seconds) AS most FROM launches WHERE app = 'own'")
    assert rows_of(table) == [(None,)]


@pytest.mark.slow
def test_distinct_values_are_counted_in_groups(ask):
    table, noise = ask(
        "SELECT app, COUNT(*), APPROX_DISTINCT(seconds) AS d FROM launches"
        " GROUP BY app HAVING DEVICES() >= 5 ORDER BY app",
        epsilon=300.0,
    )
    rows = [(row[0], row[3], row[4]) for row in rows_of(table)]
    assert [app for app, _, _ in rows] == ["mail", "maps"]
    for _, count, off in rows:
        assert off == pytest.approx(noise["APPROX_DISTINCT(seconds)"])
        assert abs(count - 2) <= 8 * off + 1


def test_the_budget_is_that_of_all_parts_together():
    sql = "SELECT app, COUNT(*), APPROX_QUANTILE(x, 0.5) FROM t GROUP BY app"
    query = SqlQuery(sql, epsilon=1.0, delta=1e-6, max_groups=4, max_rows=3, min_devices=7)
    lowered = query.lowered()
    parsed = [
        {parameter.name: parameter.value.tolist() for parameter in each.parameters}
        for each in lowered.intrinsics
    ]
    for parameters in parsed:
        assert parameters["epsilon"] == 0.5
        assert parameters["delta"] == 5e-7
        assert parameters["min_contributors_to_group"] == 7
    assert [parameters["max_groups_contributed"] for parameters in parsed] == [4, 12]
    spec = query.to_spec(population="people", name="question", goal_count=9)
    uris = {"fedsql_dp_group_by", "GoogleSQL:$differential_privacy_sum"}
    assert {each.uri for each in parse_configuration(spec.aggregation, uris)} == {
        "fedsql_dp_group_by"
    }


@pytest.mark.parametrize(
    ("sql", "options", "words"),
    [
        ("SELECT SUM(x) FROM t", {}, r"write how large a value may be, as CLAMP\(x, 0, 100\)"),
        ("SELECT AVG(x) FROM t", {}, "noise can only hide what is bounded"),
        ("SELECT VAR_POP(x) FROM t", {}, "noise can only hide what is bounded"),
        ("SELECT SUM(CLAMP(x, 5, 1)) FROM t", {}, "two limits in their order"),
        ("SELECT a, APPROX_DISTINCT(x) FROM t GROUP BY a", {"domain": {"a": [1]}}, "ask twice"),
        (
            "SELECT a, COUNT(*) FROM t GROUP BY a",
            {"domain": {"b": [1]}},
            "must name all that the query groups by: a",
        ),
        (
            "SELECT a, APPROX_QUANTILE(x, 0.5) FROM t GROUP BY a",
            {"domain": {"a": [1]}},
            "ask twice",
        ),
        (
            "SELECT a, COUNT(*) FROM t GROUP BY a",
            {"epsilon": None, "domain": {"a": [1]}},
            "epsilon",
        ),
    ],
)
def test_what_noise_cannot_hide_is_named(sql, options, words):
    with pytest.raises(UsageError, match=words):
        SqlQuery(sql, **{"epsilon": 1.0, **options}).lowered()


@pytest.mark.parametrize(
    ("x", "bound"),
    [
        ("CLAMP(x, -3, 2)", 6.0),
        ("crashed = 1", 2.0),
        ("CASE WHEN a THEN 1 ELSE 0 END", 2.0),
        ("2 * CLAMP(x, 0, 4) + 1", 18.0),
        ("-CLAMP(x, 0, 4) - (a IS NULL)", 10.0),
    ],
)
def test_bounds_follow_from_what_is_written(x, bound):
    lowered = SqlQuery(f"SELECT SUM({x}) FROM t", epsilon=1.0, max_rows=2).lowered()
    (nested,) = lowered.intrinsics[0].nested
    assert [float(each.value) for each in nested.parameters] == [bound, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": -1.0}, "epsilon must be above 0"),
        ({"epsilon": math.nan}, "epsilon must be above 0"),
        ({"epsilon": math.inf}, "epsilon must be above 0, and finite"),
        ({"delta": 1.0}, "delta must be from 0 to below 1"),
        ({"delta": math.nan}, "delta must be"),
        ({"max_groups": 0, "max_rows": 10**9}, "max_groups must be .*; max_rows must be"),
        ({"min_devices": 0}, "min_devices must be at least 1"),
        ({"domain": {"app": []}}, "must have values"),
        ({"domain": {"app": [0, -0.0]}}, "each of them once"),
        ({"domain": {"app": [math.inf]}}, "is not finite"),
    ],
)
def test_bounds_and_budgets_that_are_none_are_refused(options, words):
    query = SqlQuery("SELECT app, COUNT(*) FROM t GROUP BY app", **{"epsilon": 1.0, **options})
    with pytest.raises(UsageError, match=words):
        query.lowered()


@pytest.mark.slow
def test_distinct_values_are_counted_with_noise(ask):
    table, noise = ask("SELECT APPROX_DISTINCT(app) AS apps FROM launches", epsilon=20.0)
    (row,) = rows_of(table)
    # Maps, mail and one of its own; the noise of two values at epsilon 20 is next to none.
    assert row[0] == pytest.approx(3, abs=2)
    assert list(noise.values()) == [pytest.approx(math.sqrt(2) * 2 / 20, rel=0.01)]
    assert [column.name for column in table.columns] == ["apps", "apps stddev"]
    table, noise = ask("SELECT APPROX_DISTINCT(app) AS apps, COUNT(*) AS n FROM launches")
    assert len(noise) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_groups": 2}, "without one there is no noise"),
        ({"delta": 1e-9}, "without one there is no noise"),
        ({"max_rows": 3}, "max_rows goes with an epsilon"),
        ({"capacity": 5}, "go with masked"),
        ({"masked": True, "key_bytes": 7}, "at least 8"),
        ({"minimum_rows": -1}, "minimum_rows must be from 0"),
        ({"minimum_rows": 10**20}, "minimum_rows must be from 0"),
    ],
)
def test_what_would_be_passed_over_is_refused(options, words):
    query = SqlQuery("SELECT app, COUNT(*) FROM t GROUP BY app", **options)
    with pytest.raises(UsageError, match=words):
        query.to_spec(population="people", name="question", goal_count=1)
    if "minimum_rows" not in options:
        # Results of tasks that were taken before can be read.
        assert query.lowered()
