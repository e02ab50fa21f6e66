"""The built-in policies and storages, registered like anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.plugins import hookimpl
from fcp_plugins.pacing_adaptive import fcp_retry_window

# What is registered is imported when it is asked for: the command line looks at every plugin, and
# mostly for its commands only.
if TYPE_CHECKING:
    from fcp_core.plugins.config import OptionRegistry
    from fcp_core.rounds.policies import EligibilityPolicyFactory, SelectionPolicyFactory
    from fcp_core.storage.contract import Storage, StorageFactory

__all__ = ["fcp_retry_window"]


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of everything here."""
    from fcp_plugins import eligibility, eligibility_verdicts, pacing_adaptive, selection

    selection.add_options(options)
    eligibility.add_options(options)
    eligibility_verdicts.add_options(options)
    pacing_adaptive.add_options(options)
    options.add("storage.sqlite", "path", "path", "fcp.sqlite", "the file; its folder must exist")


@hookimpl
def fcp_register_selection_policies() -> list[SelectionPolicyFactory]:
    """Offer ``fifo``, ``uniform`` and the others of :mod:`fcp_plugins.selection`."""
    from fcp_plugins import selection

    return selection.factories()


@hookimpl
def fcp_register_eligibility_policies() -> list[EligibilityPolicyFactory]:
    """Offer the policies that devices evaluate by themselves, and the server's verdicts."""
    from fcp_plugins import eligibility, eligibility_verdicts

    return [*eligibility.factories(), *eligibility_verdicts.factories()]


@hookimpl
def fcp_register_storages() -> list[StorageFactory]:
    """Offer ``memory`` and ``sqlite``."""
    from fcp_core.storage.contract import StorageFactory
    from fcp_plugins import storage_memory

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
