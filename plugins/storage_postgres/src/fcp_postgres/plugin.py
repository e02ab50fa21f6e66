"""The plugin: the storage ``postgres`` and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import OptionRegistry
from fcp_core.storage.contract import Storage, StorageFactory


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options."""

    def add(name: str, type: str, default: Any, help: str, **more: Any) -> None:
        options.add("storage.postgres", name, type, default, help, **more)

    add("url", "str", None, "postgresql://USER@HOST:PORT/DATABASE", secret=True)
    add("schema", "str", "fcp", "the schema that has the tables; it is made if there is none")
    add("migrate", "bool", "yes", "bring the tables up to date at the start")
    add("connections", "int", 4, "how many connections a process has", minimum=1)
    add("patience", "duration", "10s", "how long a lost database is waited for", minimum=0)
    add("timeout", "duration", "60s", "how long one answer may take", minimum=0.1)
    add("statement_cache", "int", 100, "prepared statements; 0 behind PgBouncer", minimum=0)


@hookimpl
def fcp_register_storages() -> list[StorageFactory]:
    """Offer ``postgres``."""
    return [
        StorageFactory(
            name="postgres",
            summary="in a PostgreSQL database that servers on several hosts may share",
            make=_make,
        )
    ]


def _make(options: Mapping[str, Any]) -> Storage:
    # The driver is not imported for commands that store nothing.
    from fcp_postgres.storage import PostgresStorage

    if not options["url"]:
        raise UsageError(
            "the storage postgres needs the address of its database: set "
            "FCP_STORAGE_POSTGRES__URL=postgresql://USER:PASSWORD@HOST/DATABASE, or url of "
            "[fcp:storage.postgres] without the password, which then comes from ~/.pgpass."
        )
    return PostgresStorage(**options)
