"""Members of one server in this process."""

from __future__ import annotations

import pytest

from fcp_core.testing import pytest_plugin
from fcp_postgres import testing as postgres
from tests.members.shared import SharedStorage

fcp_client, fcp_server = pytest_plugin.fcp_client, pytest_plugin.fcp_server
fcp_postgres_server = postgres.fcp_postgres_server
fcp_postgres_schema = postgres.fcp_postgres_schema


@pytest.fixture
def member(fcp_server, tmp_path):
    """Start a member; all that a test starts share a storage."""

    def start(*, lease="6s", **options):
        overrides = {
            "storage": "shared",
            "lease_seconds": lease,
            "admin.token": "a-secret-of-members",
            **options.pop("overrides", {}),
        }
        options.setdefault("populations", ())
        return fcp_server(
            overrides=overrides, extra=[SharedStorage(tmp_path / "shared.sqlite")], **options
        )

    return start
