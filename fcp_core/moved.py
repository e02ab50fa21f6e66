"""Public modules under their old names: imported with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name to new name. An entry stays for the release that moved the module.
MOVED = {
    "fcp_core.protocol.kernels": "fcp_core.protocol.checkpoint.kernels",
    "fcp_core.rounds.clock": "fcp_core.rounds.machine",
    "fcp_core.rounds.transitions": "fcp_core.rounds.machine",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a moved module and loads the one that took its place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name, or None."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the new module; the old name becomes another name of it."""
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} is deprecated and goes with the next release: import {new}",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(new)
        self._kept = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back what the import system wrote over."""
        module.__spec__, module.__loader__ = self._kept


def install() -> None:
    """Let old names be imported; may be repeated."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First: below a package that moved, the others would find its modules and load them again.
        sys.meta_path.insert(0, _Finder())
