"""A privacy budget in a database that several processes share."""

import asyncio

import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.testing import query_task
from fcp_core.testing.pytest_plugin import fcp_client, fcp_population, fcp_server
from fcp_privacy.booking import book_by_hand
from fcp_privacy.books import read_books
from fcp_privacy.events import ZCDP
from fcp_privacy.ledger import PrivacyLedger

__all__ = ["fcp_client", "fcp_population", "fcp_server"]

MEAN = Intrinsic(
    "federated_mean",
    (TensorSpec("v", DataType.DOUBLE, (1,)),),
    (TensorSpec("mean", DataType.DOUBLE, (1,)),),
)


@pytest.mark.slow
def test_a_budget_holds_for_all_who_share_the_database(
    fcp_postgres_server, fcp_postgres_schema, fcp_server, fcp_population
):
    """What another process books while a task is open counts when that ends."""
    options = {
        "storage": "postgres",
        "storage.postgres.url": fcp_postgres_server.url,
        "storage.postgres.schema": fcp_postgres_schema(),
        "aggregator": "dp_gaussian",
        "aggregator.dp_gaussian.clip": "1.0",
        "aggregator.dp_gaussian.noise_multiplier": "1.0",
        "privacy.rho": "1.2",
    }
    modules = "fcp_postgres.plugin, fcp_privacy.plugin:PrivacyPlugin"
    server = fcp_server(overrides={"plugins": modules, **options})
    tasks = [server.submit(query_task(MEAN, name=name)) for name in ("a", "b")]
    with pytest.raises(StatusError, match=r"from rho 1 .* to rho 1.5; the budget is rho 1.2"):
        server.submit(query_task(MEAN, name="c"))
    fcp_population(server, [{"v": [0.5]}])
    done, open_ = tasks  # the first one comes first
    assert server.result(done)["mean"].size == 1

    plugins = Plugins.load(environ={}, overrides={"plugins": modules, **options})
    storage, ledger = plugins.make_storage(), PrivacyLedger(plugins.config)
    book = book_by_hand(storage, ledger, "people/device", ZCDP(0.5), 1, "elsewhere", "by hand")
    assert asyncio.run(book) == 2
    fcp_population(server, [{"v": [0.5]}])
    with pytest.raises(StatusError, match="used up: rho 1 is spent") as caught:
        server.result(open_)
    assert caught.value.code is Code.FAILED_PRECONDITION
    books = asyncio.run(read_books(storage.upkeep(), ledger, "people"))
    assert [account.spent for account in books.accounts] == [1.0]
    assert [entry.name for entry in books.entries] == ["a", "by hand"]
    server.stop()
