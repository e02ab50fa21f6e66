"""Finds, imports and checks plugins before they are registered."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from fcp_core.errors import UsageError, describe, plugin_errors
from fcp_core.plugins import hookspecs
from fcp_core.plugins.config import did_you_mean
from fcp_core.plugins.offers import PluginSource

#: The group of entry points that plugins are found by.
GROUP = "fcp"
#: The distribution that owns the import package ``fcp_core``.
DISTRIBUTION = "fcp-server"

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent

#: The hooks that may return an awaitable.
ASYNC_HOOKS = frozenset({"fcp_startup", "fcp_shutdown"})
#: The hooks that run as one chain; all others are called plugin by plugin.
CHAINED_HOOKS = frozenset({"fcp_authenticate", "fcp_retry_window"})


def installed_sources(
    entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
) -> list[PluginSource]:
    """Return the plugins that distributions announce, by name, without importing any.

    :raises UsageError: if there is none, not even ours.
    """
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=GROUP)
        if not entry_points:
            raise UsageError(
                f"no plugin is installed, not even the built-in ones: install {DISTRIBUTION} with "
                f"pip, since a source tree alone announces nothing."
            )
    found, metadata = [], {}
    for entry in sorted(entry_points, key=lambda entry: (entry.name, entry.value)):
        dist = entry.dist
        if dist is not None and dist not in metadata:  # which is parsed whenever it is asked for
            metadata[dist] = dist.metadata
        found.append(
            PluginSource(
                name=entry.name,
                load=entry.load,
                found=f"the entry point {entry.value}",
                distribution=metadata[dist]["Name"] if dist else None,
                version=metadata[dist]["Version"] if dist else None,
                target=entry.value,
            )
        )
    return found


def configured_source(item: str, origin: str, base: Path) -> PluginSource:
    """Return the plugin that an item of ``[fcp] plugins`` names.

    :param item: a module, a ``.py`` file, or ``module:Class``.
    """
    if item.endswith(".py"):
        path = base / Path(item).expanduser()
        return PluginSource(
            path.stem, functools.partial(_load_file, path), origin, path=str(path.resolve())
        )
    load = pkgutil.resolve_name if ":" in item else importlib.import_module
    return PluginSource(item, functools.partial(load, item), origin, target=item)


def given_source(plugin: object, taken: Sequence[str]) -> PluginSource:
    """Return the source of a plugin object that the program brings."""
    base = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__name__
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    return PluginSource(name, lambda: plugin, "the program")


def targets_of(plugin: object) -> set[str]:
    """Return what entry points of a plugin object's module or class say."""
    if isinstance(plugin, ModuleType):
        return {plugin.__name__}
    return {f"{type(plugin).__module__}:{type(plugin).__qualname__}"}


def select_sources(
    found: Sequence[PluginSource], disabled: Sequence[str], disabled_origin: str
) -> list[PluginSource]:
    """Leave out the disabled plugins and refuse two of one name.

    A module that the configuration names and that a distribution announces, too, is one plugin: the
    same configuration serves before and after it is installed.

    :raises UsageError: naming both distributions, or a disabled plugin that does not exist.
    """
    names = [source.name for source in found]
    problems = [
        f"{disabled_origin}: no plugin is called {name!r}.{did_you_mean(name, names)} "
        f"Plugins: {', '.join(names)}."
        for name in disabled
        if name not in names
    ]
    active: dict[str, PluginSource] = {}
    for source in found:
        if source.name in disabled:
            continue
        other = active.setdefault(source.name, source)
        twin = next((a for a in active.values() if a.target and a.target == source.target), source)
        if other is not source:
            problems.append(
                f"two plugins are called {source.name!r}: from {other.source} and from "
                f"{source.source}; uninstall one."
            )
        elif twin is not source and twin.distribution and not source.distribution:
            del active[source.name]
        elif twin is not source:
            problems.append(f"{source} is the same module as {twin}; drop one.")
    if problems:
        raise UsageError("\n".join(problems))
    return list(active.values())


def check_required(required: Sequence[str], origin: str, active: Sequence[PluginSource]) -> None:
    """Refuse to go on without a required plugin.

    :param required: names of plugins or distributions, with ``>=version`` or without.
    :raises UsageError: naming each that is missing or too old.
    """
    by_name = {_canonical(source.name): source for source in active}
    by_name |= {_canonical(source.distribution): source for source in active if source.distribution}
    problems = []
    for item in required:
        match = re.fullmatch(r"([\w.-]+?)\s*(?:>=\s*(\d[\w.]*))?", item)
        if match is None:
            problems.append(f"{origin}: {item!r} is not of the form name or name>=1.2.")
            continue
        source = by_name.get(_canonical(match[1]))
        if source is None:
            hint = did_you_mean(match[1], by_name)
            problems.append(f"{origin}: the required plugin {match[1]!r} is not installed.{hint}")
        elif match[2] and (not source.version or _release(source.version) < _release(match[2])):
            problems.append(f"{origin}: {item} is required, but {source} is what is installed.")
    if problems:
        raise UsageError("\n".join(problems))


def import_plugins(sources: Sequence[PluginSource]) -> list[tuple[PluginSource, object]]:
    """Import the plugins and check all that can be checked before they are registered.

    A plugin that is a class is instantiated here, so that each server has one of its own.

    :raises UsageError: with all problems of all plugins.
    """
    problems = []
    loaded = []
    for source in sources:
        try:
            plugin = source.load()
            if inspect.isclass(plugin):
                plugin = plugin()
        # SystemExit too: a module that is a script ends the server without a word otherwise.
        except plugin_errors() as error:
            problems.append(
                f"{source} cannot be imported: {explain(error)}. Mend or remove it, or leave it "
                f"out with [fcp] disable_plugins = {source.name}."
            )
            continue
        except KeyboardInterrupt:
            # Who did not press Ctrl-C has a plugin that raises it.
            logger.warning("interrupted while %s was imported", source)
            raise
        loaded.append((source, plugin))
        problems += check_plugin(source, plugin)
    if problems:
        raise UsageError("\n".join(problems))
    return loaded


def check_plugin(source: PluginSource, plugin: object) -> list[str]:
    """Return one sentence for each thing that is wrong with a plugin."""
    version = getattr(plugin, "fcp_api_version", 1)
    if version != hookspecs.API_VERSION:
        return [
            f"{source} is written for version {version!r} of the hooks; this server has version "
            f"{hookspecs.API_VERSION}. Install a release of the plugin for that version, or a "
            f"newer {DISTRIBUTION}."
        ]
    specs = hook_specs()
    problems = []
    marked = 0
    for name in dir(plugin):
        if not name.startswith("fcp_") and isinstance(plugin, ModuleType) and name.startswith("_"):
            continue
        function = inspect.getattr_static(plugin, name)
        if isinstance(function, staticmethod | classmethod):
            function = function.__func__
        if not inspect.isroutine(function):
            continue
        where = f"{source}: {place_of(function)}"
        opts = getattr(function, "fcp_impl", None)
        if opts is None:
            if name in specs:
                problems.append(
                    f"{where}: {name} is not marked with hookimpl and would never run; decorate it."
                )
            continue
        marked += 1
        hook = opts.get("specname") or name
        if hook not in specs:
            if not opts.get("optionalhook"):
                hint = did_you_mean(hook, specs)
                problems.append(f"{where}: no hook is called {hook}.{hint}")
            continue
        problems += [f"{where}: {p}" for p in _check_function(plugin, name, hook, specs[hook])]
        wrapper = bool(opts.get("wrapper") or opts.get("hookwrapper"))
        if wrapper and hook not in CHAINED_HOOKS:
            problems.append(
                f"{where}: {hook} cannot be wrapped, since every plugin is called on its own."
            )
        elif wrapper and not inspect.isgeneratorfunction(function):
            problems.append(f"{where}: a wrapper of {hook} must be a generator; it has no yield.")
    if not marked and not problems:
        classes = [
            name
            for name, value in vars(plugin).items()
            if inspect.isclass(value) and any(hasattr(m, "fcp_impl") for m in vars(value).values())
        ]
        mend = "mark its functions with fcp_core.plugins.hookimpl"
        if classes and isinstance(plugin, ModuleType):
            mend = f"its class does, so name that: {plugin.__name__}:{classes[0]}"
        problems.append(f"{source} implements no hook; {mend}.")
    return problems


def _check_function(plugin: object, name: str, hook: str, spec: Any) -> list[str]:
    problems = []
    function = getattr(plugin, name)
    arguments = list(inspect.signature(spec).parameters)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            problems.append(f"{hook} takes {parameter}, which is never filled")
        elif parameter.kind is parameter.KEYWORD_ONLY:
            problems.append(f"{hook} takes {parameter.name} by keyword only; drop the star")
        elif parameter.name not in arguments:
            problems.append(f"{hook} asks for {parameter.name}")
        elif parameter.default is not parameter.empty:
            problems.append(
                f"{hook} gives {parameter.name} a default and would never be passed it; drop it"
            )
    passed = ", ".join(arguments) or "no arguments"
    problems = [f"{problem}; the hook passes {passed}." for problem in problems]
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if is_async and hook not in ASYNC_HOOKS:
        problems.append(f"{hook} must not be async; only {' and '.join(sorted(ASYNC_HOOKS))} may.")
    return problems


@functools.lru_cache(maxsize=1)
def hook_specs() -> dict[str, Any]:
    """Return the functions that specify the hooks, by name."""
    return {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "fcp_spec")}


def new_plugin_manager() -> pluggy.PluginManager:
    """Return an empty plugin manager that knows the hooks."""
    manager = pluggy.PluginManager("fcp")
    manager.add_hookspecs(hookspecs)
    return manager


@functools.lru_cache(maxsize=1)
def check_owner() -> None:
    """Refuse to run if another distribution has installed an ``fcp_core`` over ours.

    :raises UsageError: naming it.
    """
    # Not packages_distributions(): it parses what all that is installed says of itself.
    owners = [each for each in importlib.metadata.distributions() if _installs(each, "fcp_core")]
    others = sorted({each.name for each in owners if _canonical(each.name) != DISTRIBUTION})
    if others:
        raise UsageError(
            f"the package fcp_core is also installed by {', '.join(others)}, which is unrelated to "
            f"this server; uninstall that and reinstall {DISTRIBUTION}."
        )


def _installs(distribution: importlib.metadata.Distribution, package: str) -> bool:
    listed = distribution.read_text("top_level.txt")
    if listed is not None:
        return package in listed.split()
    files = distribution.read_text("RECORD") or ""
    return f"\n{package}/" in f"\n{files}"


def explain(error: BaseException) -> str:
    """Return an exception as a clause, with the place it was raised at."""
    if isinstance(error, UsageError):
        return str(error).removesuffix(".")
    from fcp_core.protocol.status import StatusError  # which loads protobuf

    origin = error
    if isinstance(error, StatusError):  # which says what a plugin raised
        origin = error.__cause__ or error.__context__ or error
    frames = [
        frame
        for frame in traceback.extract_tb(origin.__traceback__)
        if "importlib" not in frame.filename and Path(frame.filename).parent != _HERE
    ]
    if isinstance(error, SystemExit):
        error = RuntimeError(f"it ends the program, with status {error.code!r}")
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{describe(error)}{place}"


def place_of(function: object) -> str:
    """Return the file and line of a function."""
    code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    name = f"fcp_plugin_file_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    # A location that ends in .py always has a loader.
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _release(version: str) -> tuple[tuple[int, ...], bool]:
    """Return something to compare: the release numbers, and whether it is the release itself."""
    match = re.match(r"v?(?:\d+!)?(\d+(?:\.\d+)*)(.*)", version)
    if match is None:
        return ((), False)
    numbers = [int(part) for part in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    before = re.match(r"[-_.]?(a|b|c|rc|alpha|beta|pre|preview|dev)", match[2])
    return (tuple(numbers), before is None)
