"""Tracing: a record of every hook call, with the plugin, the arguments, the answer and the time."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pluggy

from fcp_core.plugins.discovery import PluginSource, hook_specs

logger = logging.getLogger("fcp.hooks")

#: The longest form of one value.
_WIDTH = 60

#: Arguments that carry tokens and keys.
_HIDDEN = frozenset({"headers", "path", "peer"})


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
    """Tell *sink* of every hook call from now on."""
    names = {source.name: source for source in sources}
    for hook in hook_specs():
        for impl in getattr(manager.hook, hook).get_hookimpls():
            impl.function = _traced(
                impl.function, hook, names[impl.plugin_name].name, tuple(impl.argnames), sink
            )


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
        told = [
            f"{name}={getattr(value, name)!r}"
            for name in ("population", "name", "task_name", "reason", "delay_min", "delay_max")
            if isinstance(getattr(value, name, None), str | int | float)
        ]
        text = f"{type(value).__name__}({', '.join(told)})"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _traced(
    function: Callable[..., Any], hook: str, plugin: str, names: Sequence[str], sink: TraceSink
) -> Callable[..., Any]:
    secret = hook == "fcp_authenticate"

    def tell(values: Sequence[Any], answer: str, started: float) -> None:
        arguments = {
            name: "..." if secret and name in _HIDDEN else short(value)
            for name, value in zip(names, values, strict=True)
        }
        sink(HookTrace(hook, plugin, arguments, answer, time.perf_counter() - started))

    def describe(answer: Any) -> str:
        return "somebody" if secret and isinstance(answer, str) else short(answer)

    async def wait(answer: Awaitable[Any], values: Sequence[Any], started: float) -> None:
        try:
            result = await answer
        except Exception as error:
            tell(values, f"raised {type(error).__name__}", started)
            raise
        tell(values, describe(result), started)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*values: Any) -> Generator[Any, Any, Any]:
            started = time.perf_counter()
            try:
                result = yield from function(*values)
            except Exception as error:
                tell(values, f"raised {type(error).__name__}", started)
                raise
            tell(values, f"wrapped {describe(result)}", started)
            return result

        return wrapper

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        started = time.perf_counter()
        try:
            result = function(*values)
        except Exception as error:
            tell(values, f"raised {type(error).__name__}", started)
            raise
        if inspect.isawaitable(result):
            return wait(result, values, started)
        if inspect.isgenerator(result):
            result = list(result)
        tell(values, describe(result), started)
        return result

    return call
