"""What ledgers hold is in the metrics and on the dashboard after a restart, before any release."""

from __future__ import annotations

import json
import urllib.request

import pytest

from fcp_core.admin import AdminClient
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.rounds.events import LedgerRead
from fcp_core.testing.servers import query_task
from fcp_dashboard.plugin import DashboardPlugin
from fcp_privacy.plugin import PrivacyPlugin

TOKEN = "a-token-of-the-tests"
SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.DOUBLE, (2,)),),
    (TensorSpec("sum", DataType.DOUBLE, (2,)),),
)


@pytest.fixture
def start(fcp_server, tmp_path):
    return lambda: fcp_server(
        overrides={
            "pages": ["dashboard"],
            "admin.token": TOKEN,
            "metrics": True,
            "storage": "sqlite",
            "storage.sqlite.path": str(tmp_path / "fcp.sqlite"),
            "aggregator": "dp_gaussian",
            "aggregator.dp_gaussian.clip": 1000,
            "aggregator.dp_gaussian.noise_multiplier": 2,
            "privacy.rho": 1,
        },
        extra=[DashboardPlugin(), PrivacyPlugin()],
    )


def test_the_ledger_is_known_after_a_restart(start, fcp_client):
    server = start()
    assert not any(isinstance(event, LedgerRead) for event in server.events)
    for number in range(2):
        task = server.submit(query_task(SUM, name="count", goal_count=1))
        with fcp_client(server, {"v": [3.0, number]}) as device:
            device.run_once()
        server.result(task)
    server.stop()
    server = start()
    (read,) = [event for event in server.events if isinstance(event, LedgerRead)]
    # Each costs 1 / (2 * 2**2) of rho.
    assert read.figures == pytest.approx({"privacy_spent": 0.25, "privacy_budget": 1.0})
    assert (read.population, read.releases) == ("people", 2)
    with AdminClient(server.url, TOKEN) as admin:
        snapshot = json.loads(admin.page("dashboard/snapshot.json"))
    (seen,) = snapshot["members"][0]["populations"]
    assert (seen["figures"], seen["releases"], seen["last"]) == (
        read.figures,
        2,
        pytest.approx(read.last),
    )
    with urllib.request.urlopen(f"{server.url}metrics") as answer:
        text = answer.read().decode()
    assert 'fcp_ledger{population="people",figure="privacy_spent"} 0.25' in text
