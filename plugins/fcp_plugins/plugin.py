"""The built-in policies, storages, engines and protocols, registered like anybody's."""

from __future__ import annotations

from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import OptionRegistry
from fcp_core.rounds.policies import SelectionPolicyFactory
from fcp_core.storage.contract import StorageFactory
from fcp_plugins import selection, storage_memory, storage_sqlite


@hookimpl
def fcp_add_options(options: OptionRegistry) -> None:
    """Declare the options of everything here."""
    selection.add_options(options)
    storage_sqlite.add_options(options)


@hookimpl
def fcp_register_selection_policies() -> list[SelectionPolicyFactory]:
    """Offer ``fifo`` and ``uniform``."""
    return selection.factories()


@hookimpl
def fcp_register_storages() -> list[StorageFactory]:
    """Offer ``memory`` and ``sqlite``."""
    return [storage_memory.factory(), storage_sqlite.factory()]
