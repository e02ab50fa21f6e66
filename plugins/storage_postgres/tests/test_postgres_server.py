"""A server on PostgreSQL, its devices, and faults: each contribution counts once."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.client import Outcome, RetryPolicy
from fcp_core.testing import query_task
from fcp_core.testing.pytest_plugin import fcp_client, fcp_population, fcp_server
from fcp_postgres.testing_proxy import FATES, CuttingProxy

__all__ = ["fcp_client", "fcp_population", "fcp_server"]

DEVICES = 30
SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (1,)),),
    (TensorSpec("sum", DataType.INT64, (1,)),),
)


@pytest.fixture
def serve(fcp_server, fcp_postgres_schema):
    schema = fcp_postgres_schema()

    def serve(url):
        return fcp_server(
            overrides={
                "plugins": "fcp_postgres.plugin",
                "storage": "postgres",
                "storage.postgres.url": url,
                "storage.postgres.schema": schema,
                "storage.postgres.patience": "1s",
                "selection": "fifo",
            }
        )

    return serve


def contribute(fcp_population, server, numbers):
    """Let devices contribute powers of two; who is turned away meanwhile comes again."""
    retry = RetryPolicy(attempts=30, delay=0.05)
    left, failed = list(numbers), []
    while left and not failed:
        data = [{"v": [1 << number]} for number in left]
        results = fcp_population(server, data, threads=6, retry=retry)
        failed = [result for result in results if result.outcome is Outcome.FAILED]
        left = [
            number
            for number, result in zip(left, results, strict=True)
            if result.outcome is not Outcome.CONTRIBUTED
        ]
    return failed


@pytest.mark.slow
def test_contributions_count_once_whatever_breaks(fcp_postgres_server, serve, fcp_population):
    rng = random.Random(7)
    with CuttingProxy(fcp_postgres_server, [rng.choice(FATES) for _ in range(200)]) as proxy:
        server = serve(proxy.url)
        task = server.submit(query_task(SUM, goal_count=DEVICES))
        with ThreadPoolExecutor(1) as pool:
            devices = pool.submit(contribute, fcp_population, server, range(DEVICES))
            for _ in range(2):
                with proxy.down():
                    fcp_postgres_server.crash()
                    fcp_postgres_server.start()
            assert devices.result() == []
        assert server.result(task)["sum"].tolist() == [(1 << DEVICES) - 1]
        status = server.status(task)
        assert (status.contributed, status.dropped) == (DEVICES, 0)
        assert len(set(proxy.commits)) > 2
        server.stop()


def test_a_server_goes_on_where_another_one_ended(fcp_postgres_server, serve, fcp_population):
    first = serve(fcp_postgres_server.url)
    task = first.submit(query_task(SUM, goal_count=5))
    assert contribute(fcp_population, first, range(3)) == []
    first.stop()
    second = serve(fcp_postgres_server.url)
    assert second.status(task).contributed == 3
    assert contribute(fcp_population, second, range(3, 5)) == []
    assert second.result(task)["sum"].tolist() == [31]
    second.stop()
