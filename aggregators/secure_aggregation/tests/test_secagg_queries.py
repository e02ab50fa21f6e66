"""Analytics under masks, over HTTP: a query in SQL, and a task file with a bound."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.client import SQLStore
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.server import Server
from fcp_core.tasks.sql_query import SqlQuery
from fcp_core.tasks.taskfile import parse_task
from fcp_core.testing import RunningServer, make_device
from fcp_core.testing.servers import COLLECTION
from fcp_secagg.device import SecureAggregationDevice

pytest.importorskip("sqlglot")

DEVICES = 4
CONFIGURATION = """
[fcp]
plugins = fcp_secagg.plugin
retry_min = 10ms
retry_max = 20ms
[fcp:population:people]
protocol = secagg
[fcp:protocol.secagg]
cohort = 4
minimum = 4
dropout_rate = 0
join_timeout = 10m
phase_timeout = 10m
polling_interval = 10ms
"""
HOURS = """
[task]
population = "people"
name = "hours"
goal_count = 4
over_selection = 1.0

[[query]]
collection_uri = "app:/hours"
vectors.hours = { dtype = "int64", length = 3, largest = 100 }

[result]
sum = ["hours"]
"""


def ask(server, spec, devices):
    """Return the result, when each device has contributed once."""
    task = server.submit(spec)
    with ThreadPoolExecutor(len(devices)) as pool:
        results = list(pool.map(lambda device: device.run_once(), devices))
    assert [result.outcome.name for result in results] == ["CONTRIBUTED"] * len(devices)
    assert any("1 sum, of 4 devices" in note for note in server.status(task).notes)
    return dict(server.result(task))


def test_queries_and_bounded_vectors_are_summed_under_masks(tmp_path):
    (tmp_path / "fcp.cfg").write_text(CONFIGURATION)
    plugins = Plugins.load(config_file=tmp_path / "fcp.cfg", environ={})
    sql = "SELECT app, COUNT(*) AS n FROM launches GROUP BY app ORDER BY n DESC, app LIMIT 2"
    query = SqlQuery(sql, masked=True, capacity=20)
    few = SqlQuery(sql.replace("ORDER", "HAVING DEVICES() >= 2 ORDER"), masked=True, capacity=20)
    devices = []
    with RunningServer(Server(plugins, populations=["people"])) as server:
        for number in range(DEVICES):
            file = tmp_path / f"{number}" / "launches.csv"
            file.parent.mkdir()
            file.write_text(f"app\nmaps\nmaps\nown {number}\n")
            devices.append(
                make_device(
                    server.url,
                    {},
                    stores={query.collection: SQLStore(file)},
                    protocols=[SecureAggregationDevice()],
                )
            )
        spec = query.to_spec(
            population="people", name="top", goal_count=DEVICES, over_selection=1.0
        )
        result = ask(server, spec, devices)
        table = query.table(write_checkpoint(result, "federated_compute"))
        assert list(table.rows()) == [("maps", 8), ("own 0", 1)]

        spec = few.to_spec(population="people", name="top", goal_count=DEVICES, over_selection=1.0)
        result = ask(server, spec, devices)
        # Small groups are not in the result, whoever reads it.
        (masks,) = (part.masks for part in few.lowered().parts)
        (group,) = masks.layout.read(result[masks.name])
        assert (group.key, group.devices, group.numbers) == (b"'maps'", 4, (8,))
        table = few.table(write_checkpoint(result, "federated_compute"))
        assert list(table.rows()) == [("maps", 8)]

        devices = [
            make_device(
                server.url, {"hours": [number, 0, 100]}, protocols=[SecureAggregationDevice()]
            )
            for number in range(DEVICES)
        ]
        hours = parse_task(HOURS.replace("app:/hours", COLLECTION)).to_spec()
        assert ask(server, hours, devices)["hours"].tolist() == [6, 0, 400]


def test_without_the_protocol_both_are_refused(tmp_path):
    query = SqlQuery("SELECT app, COUNT(*) FROM t GROUP BY app", masked=True)
    specs = [
        query.to_spec(population="people", name="top", goal_count=DEVICES),
        parse_task(HOURS).to_spec(),
    ]
    with RunningServer(Server(Plugins.load(environ={}), populations=["people"])) as server:
        for spec in specs:
            with pytest.raises(StatusError, match="asks for secure aggregation"):
                server.submit(spec)
