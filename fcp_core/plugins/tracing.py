"""Traces every hook call: the plugin, the arguments, the answer and the time."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pluggy

from fcp_core.plugins.discovery import hook_specs
from fcp_core.plugins.offers import PluginSource

logger = logging.getLogger("fcp.hooks")

#: The longest form of one value.
_WIDTH = 60

#: Arguments that carry tokens and keys.
_HIDDEN = frozenset({"certificate", "headers", "path", "peer"})


@dataclass(frozen=True)
class HookTrace:
    """One plugin's call of one hook.

    :param plugin: the plugin's name.
    :param arguments: the short forms of the arguments that it takes.
    :param answer: the short form of what it returned, or ``raised ...``.
    :param seconds: how long it took; a wrapper's time includes what it wraps.
    """

    hook: str
    plugin: str
    arguments: Mapping[str, str]
    answer: str
    seconds: float

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return (
            f"{self.hook}({arguments}) in {self.plugin}: {self.answer} "
            f"[{self.seconds * 1000:.2f} ms]"
        )


TraceSink: TypeAlias = Callable[[HookTrace], None]


def log_trace(trace: HookTrace) -> None:
    """Write a trace to the log ``fcp.hooks``."""
    logger.info("%s", trace)


def trace_hooks(
    manager: pluggy.PluginManager, sources: Sequence[PluginSource], sink: TraceSink
) -> None:
    """Report every hook call to *sink* from now on."""
    names = {source.name: source for source in sources}
    for hook in hook_specs():
        for impl in getattr(manager.hook, hook).get_hookimpls():
            trace = _traced_wrapper if impl.wrapper or impl.hookwrapper else _traced
            teller = _Reporter(hook, names[impl.plugin_name].name, tuple(impl.argnames), sink)
            impl.function = trace(impl.function, teller)


def short(value: Any) -> str:
    """Return a short form of an argument or an answer, without what identifies a device."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(map(str, value)) + "}"
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        names = [str(getattr(item, "name", short(item))) for item in value]
        text = "[" + ", ".join(names) + "]"
    else:
        parts = [
            f"{name}={getattr(value, name)!r}"
            for name in ("population", "name", "task_name", "reason", "delay_min", "delay_max")
            if isinstance(getattr(value, name, None), str | int | float)
        ]
        text = f"{type(value).__name__}({', '.join(parts)})"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


@dataclass(frozen=True)
class _Reporter:
    """Reports one plugin's calls of one hook to the sink."""

    hook: str
    plugin: str
    names: Sequence[str]
    sink: TraceSink

    def tell(self, values: Sequence[Any], answer: str, started: float) -> None:
        seconds = time.perf_counter() - started
        arguments = {
            name: "..." if self._hides(name) else short(value)
            for name, value in zip(self.names, values, strict=True)
        }
        self.sink(HookTrace(self.hook, self.plugin, arguments, answer, seconds))

    def describe(self, answer: Any) -> str:
        who = self.hook == "fcp_authenticate" and isinstance(answer, str)
        return "somebody" if who else short(answer)

    def _hides(self, name: str) -> bool:
        return self.hook == "fcp_authenticate" and name in _HIDDEN


def _traced(function: Callable[..., Any], teller: _Reporter) -> Callable[..., Any]:
    async def wait(answer: Awaitable[Any], values: Sequence[Any], started: float) -> None:
        try:
            result = await answer
        except Exception as error:
            teller.tell(values, f"raised {type(error).__name__}", started)
            raise
        teller.tell(values, teller.describe(result), started)

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        started = time.perf_counter()
        try:
            result = function(*values)
            if inspect.isgenerator(result):
                result = list(result)
        except Exception as error:
            teller.tell(values, f"raised {type(error).__name__}", started)
            raise
        if inspect.isawaitable(result):
            return wait(result, values, started)
        teller.tell(values, teller.describe(result), started)
        return result

    return call


def _traced_wrapper(function: Callable[..., Any], teller: _Reporter) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*values: Any) -> Generator[Any, Any, Any]:
        started = time.perf_counter()
        try:
            result = yield from function(*values)
        except Exception as error:
            teller.tell(values, f"raised {type(error).__name__}", started)
            raise
        teller.tell(values, f"wrapped {teller.describe(result)}", started)
        return result

    return call
