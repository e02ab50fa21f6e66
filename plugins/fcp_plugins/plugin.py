"""The built-in policies and storages, and the event log, registered like anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import OptionRegistry
from fcp_core.rounds.policies import EligibilityPolicyFactory, SelectionPolicyFactory
from fcp_core.storage.contract import Storage, StorageFactory
from fcp_plugins import (
    eligibility,
    eligibility_verdicts,
    pacing_adaptive,
    selection,
    storage_memory,
)
from fcp_plugins.event_log import fcp_event
from fcp_plugins.pacing_adaptive import fcp_retry_window

__all__ = ["fcp_event", "fcp_retry_window"]


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of everything here."""
    selection.add_options(options)
    eligibility.add_options(options)
    eligibility_verdicts.add_options(options)
    pacing_adaptive.add_options(options)
    options.add("storage.sqlite", "path", "path", "fcp.sqlite", "the file; its folder must exist")


@hookimpl
def fcp_register_selection_policies() -> list[SelectionPolicyFactory]:
    """Offer ``fifo``, ``uniform`` and the others of :mod:`fcp_plugins.selection`."""
    return selection.factories()


@hookimpl
def fcp_register_eligibility_policies() -> list[EligibilityPolicyFactory]:
    """Offer the policies that devices evaluate by themselves, and the server's verdicts."""
    return [*eligibility.factories(), *eligibility_verdicts.factories()]


@hookimpl
def fcp_register_storages() -> list[StorageFactory]:
    """Offer ``memory`` and ``sqlite``."""
    return [
        storage_memory.factory(),
        StorageFactory(
            name="sqlite",
            summary="in an SQLite file that survives restarts and that several processes may share",
            make=_make_sqlite,
        ),
    ]


def _make_sqlite(options: Mapping[str, Any]) -> Storage:
    # SQLite and asyncio are not imported for commands that store nothing.
    from fcp_plugins.storage_sqlite import SqliteStorage

    return SqliteStorage(options["path"])
