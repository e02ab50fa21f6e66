"""The implementations of hooks: finds them in loaded plugins, and runs a stage of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from fcp_core.errors import UsageError, plugin_errors
from fcp_core.plugins import discovery
from fcp_core.plugins.discovery import explain, place_of
from fcp_core.plugins.offers import PluginSource


@dataclass(frozen=True)
class Call:
    """One plugin's implementation of one hook."""

    hook: str
    source: PluginSource
    order: tuple[int, int]
    function: Callable[..., Any] = field(repr=False)
    arguments: tuple[str, ...]

    def __call__(self, **values: Any) -> Any:
        """Call it with those of the hook's arguments that it asks for."""
        return self.function(*(values[name] for name in self.arguments))


def collect_calls(
    manager: pluggy.PluginManager, loaded: Sequence[tuple[PluginSource, object]]
) -> dict[str, list[Call]]:
    """Return each hook's implementations: ``tryfirst``, then as they were loaded, ``trylast``."""
    sources = {source.name: (index, source) for index, (source, _) in enumerate(loaded)}
    calls: dict[str, list[Call]] = {}
    for hook in discovery.hook_specs():
        found = []
        for impl in getattr(manager.hook, hook).get_hookimpls():
            index, source = sources[impl.plugin_name]
            rank = 0 if impl.tryfirst else 2 if impl.trylast else 1
            found.append(Call(hook, source, (rank, index), impl.function, tuple(impl.argnames)))
        calls[hook] = sorted(found, key=lambda call: call.order)
    return calls


def run_all(calls: Sequence[Call], function: Callable[[Call], None]) -> None:
    """Run a stage for every plugin, and raise all problems together."""
    problems = []
    first: BaseException | None = None
    for call in calls:
        try:
            function(call)
        except plugin_errors() as error:
            first = first or error
            where = f"{call.source}: {place_of(call.function)}"
            problems.append(f"{where}: {call.hook} failed: {explain(error)}.")
    if problems:
        raise UsageError("\n".join(problems)) from first
