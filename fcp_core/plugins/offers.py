"""What plugins are and offer, as whoever lists them sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PluginSource:
    """A plugin that was found and not imported yet.

    :param name: the entry point's name, the module's, or the object's class.
    :param target: the module, and the object in it if there is one.
    :param path: the file, of a plugin that is one.
    :param distribution: where an installed plugin comes from; None for others.
    :param found: how it was found, for a person to read.
    """

    name: str
    load: Callable[[], object]
    found: str
    distribution: str | None = None
    version: str | None = None
    target: str = ""
    path: str = ""

    @property
    def source(self) -> str:
        """The distribution with its version, or how it was found."""
        return f"{self.distribution} {self.version}" if self.distribution else self.found

    def __str__(self) -> str:
        return f"plugin {self.name!r} from {self.source}"


@dataclass(frozen=True)
class Offer:
    """One thing that a plugin offers.

    :param kind: aggregator, protocol, selection, eligibility, storage, engine, pages, ledger or
        command.
    :param active: whether the configuration chooses it.
    """

    kind: str
    name: str
    summary: str
    plugin: PluginSource
    active: bool = False


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that is in use, the hooks it implements and what it offers."""

    source: PluginSource
    plugin: object = field(repr=False)
    hooks: tuple[str, ...]
