"""The storage is held to the kit, against a server of the tests' own."""

import contextlib
import hashlib
import os

import pytest
from hypothesis import settings as hypothesis_settings

from fcp_core.testing.storage import StorageConformance
from fcp_postgres.storage import PostgresStorage
from fcp_postgres.testing_proxy import ANSWERED, PASS, SENT, UNSENT, CuttingProxy


def schema_of(path):
    return "kit_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]


def storage_of(path):
    """Make the storage of a path, here and in the kit's other processes."""
    return PostgresStorage(os.environ["FCP_TEST_POSTGRES"], schema=schema_of(path), patience=60)


class TestPostgres(StorageConformance):
    durable = shared = shared_by_hosts = can_fail = can_lose_answers = has_upkeep = True
    child_factory = "test_postgres_storage:storage_of"
    settings = hypothesis_settings(max_examples=6, stateful_step_count=25, deadline=None)

    @pytest.fixture(autouse=True)
    def server(self, fcp_postgres_server, monkeypatch):
        monkeypatch.setenv("FCP_TEST_POSTGRES", fcp_postgres_server.url)
        monkeypatch.syspath_prepend(os.path.dirname(__file__))
        self.postgres = fcp_postgres_server

    def make_storage(self, path):
        return storage_of(path)

    @contextlib.contextmanager
    def lose_answers(self, path):
        fates = [UNSENT, ANSWERED, PASS, SENT] * 10
        with pytest.MonkeyPatch.context() as patch, CuttingProxy(self.postgres, fates) as proxy:
            patch.setenv("FCP_TEST_POSTGRES", proxy.url)
            yield

    def disable(self, path):
        return self.postgres.down()

    def test_fails_in_the_contracts_words(self, tmp_path, monkeypatch):
        def impatient(path):
            return PostgresStorage(self.postgres.url, schema=schema_of(path), patience=0)

        monkeypatch.setattr(self, "make_storage", impatient)
        super().test_fails_in_the_contracts_words(tmp_path)
