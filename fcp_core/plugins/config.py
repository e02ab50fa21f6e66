"""The configuration: the values of declared options, and the source of each.

The order, the last one wins: declared default, one file, the environment, what the caller or the
command line gives. The file is the one that is named (``--config``, ``FCP_CONFIG``), or the first
of ``setup.cfg``, ``fcp.cfg`` and ``pyproject.toml`` in the working folder that has a section of
ours; there is no search upward. Core options stand in ``[fcp]``, those of one thing in a section of
its own: ``[fcp:storage.sqlite]``, in TOML ``[tool.fcp."storage.sqlite"]``. In the environment, a
core option is called like ``FCP_RETRY_MIN``, and ``path`` of ``[fcp:storage.sqlite]`` is called
``FCP_STORAGE_SQLITE__PATH``.

What stands in ``[fcp:population:NAME]`` holds for one population, and what stands in
``[fcp:task:NAME]`` for the tasks of one name; a task's section wins over its population's, and both
win over ``[fcp]``, wherever that has its values from. An option of a thing is written with its
section there: ``selection.uniform.window``.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.files import FILES, header, is_scope, normal, normal_key, read_file
from fcp_core.plugins.registry import (
    Option,
    OptionRegistry,
    OptionValue,
    did_you_mean,
    variable,
)
from fcp_core.plugins.removed_options import REMOVED, warn_if_removed
from fcp_core.rounds.text import NAME_PATTERN

__all__ = [
    "Config",
    "Option",
    "OptionRegistry",
    "OptionValue",
    "Sources",
    "did_you_mean",
    "load_config",
]

#: Variables that a container platform sets for a service that happens to be called "fcp".
_SERVICE_LINK = re.compile(
    r"FCP_(?:\w+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT(?:_\d+_(?:TCP|UDP)\w*)?)"
)


@dataclass(frozen=True)
class _Raw:
    value: object
    origin: str
    base: Path


class Sources:
    """The raw values of a file, the environment and the caller, not yet parsed.

    :param config_file: read this file and no other.
    :param environ: the environment; ``os.environ`` by default.
    :param overrides: values by dotted name: ``{"retry_min": "5s", "storage.sqlite.path": path}``.
    :param overrides_origin: what errors call the overrides.
    :param working_folder: where files are looked for; the current folder by default.
    :raises UsageError: if a file cannot be read, has a key twice, or was named and has no section.
    """

    def __init__(
        self,
        *,
        config_file: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        overrides_origin: str = "the program's overrides",
        working_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.folder = Path.cwd() if working_folder is None else Path(working_folder).absolute()
        self.file: Path | None = None
        self.ignored: list[Path] = []
        self._file: dict[tuple[str, str], _Raw] = {}
        self._sections: dict[str, str] = {}
        self._environ = {
            name: value
            for name, value in environ.items()
            if name.startswith("FCP_") and name != "FCP_CONFIG"
        }
        self._overrides: dict[tuple[str, str], _Raw] = {}
        #: By scope, then by the option's key.
        self.scoped: dict[str, dict[str, _Raw]] = {}
        self._find_file(config_file or environ.get("FCP_CONFIG") or None)
        for key, value in (overrides or {}).items():
            raw = _Raw(value, f"{overrides_origin}: {key}", self.folder)
            scope, _, rest = key.partition(".")
            if is_scope(scope):
                self.scoped.setdefault(scope, {})[normal_key(rest)] = raw
            else:
                section, _, name = normal_key(key).rpartition(".")
                self._overrides[section, name] = raw

    def _find_file(self, named: str | os.PathLike[str] | None) -> None:
        if named is not None:
            path = self.folder / Path(named).expanduser()
            sections = read_file(path, str(path))
            if sections is None:
                wanted = "[tool.fcp]" if path.suffix == ".toml" else "[fcp] or [fcp:...]"
                raise UsageError(f"the configuration file {path} has no section {wanted}.")
            self._use_file(path, str(path), sections)
            return
        for name in FILES:
            path = self.folder / name
            if not path.is_file():
                continue
            sections = read_file(path, name)
            if sections is None:
                continue
            if self.file is None:
                self._use_file(path, name, sections)
            else:
                self.ignored.append(path)

    def _use_file(self, path: Path, shown: str, sections: Mapping[str, Mapping[str, Any]]) -> None:
        self.file = path
        toml = path.suffix == ".toml"
        for section, values in sections.items():
            where = f"{shown} {header(section, toml)}"
            raws = {n: _Raw(value, f"{where} {n}", path.parent) for n, value in values.items()}
            if is_scope(section):
                self.scoped[section] = raws
            else:
                self._sections[section] = where
                self._file |= {(section, name): raw for name, raw in raws.items()}

    def find(self, option: Option) -> _Raw | None:
        """Return the raw value that wins for an option, or None if none is given."""
        key = (option.section, option.name)
        if key in self._overrides:
            return self._overrides[key]
        if option.variable in self._environ:
            origin = f"environment {option.variable}"
            return _Raw(self._environ[option.variable], origin, self.folder)
        return self._file.get(key)

    def base(self, option: Option) -> Path:
        """Return the folder that relative paths in an option's value are relative to."""
        raw = self.find(option)
        return self.folder if raw is None else raw.base

    def value(self, option: Option) -> OptionValue:
        """Return an option's value.

        :raises UsageError: if the value that wins is not of the option's type.
        """
        raw = self.find(option)
        if raw is None:
            if option.default is None:
                return OptionValue(option, None, "default")
            return OptionValue(
                option, option.parse(option.default, option.label, self.folder), "default"
            )
        return OptionValue(option, option.parse(raw.value, raw.origin, raw.base), raw.origin)

    def unknown(self, registry: OptionRegistry) -> list[str]:
        """Return one sentence for each value without a declared option.

        An option that an earlier release had is no error: it gets a warning.
        """
        sections = {*registry.sections(), *(section for section, _ in REMOVED if section)}
        problems = []
        for section, origin in self._sections.items():
            if section and section not in sections:
                hint = did_you_mean(section, sections, header)
                problems.append(f"{origin}: no active plugin has such options.{hint}")
        for (section, name), raw in [*self._file.items(), *self._overrides.items()]:
            if section and section not in sections:
                if section not in self._sections:
                    hint = did_you_mean(section, sections)
                    problems.append(f"{raw.origin}: no active plugin has such options.{hint}")
            elif registry.get(section, name) is None and not warn_if_removed(
                section, name, raw.origin
            ):
                hint = self._where_it_is(registry, section, name)
                problems.append(f"{raw.origin}: there is no such option.{hint}")
        return problems + self._unknown_variables([option.variable for option in registry])

    @staticmethod
    def _where_it_is(registry: OptionRegistry, section: str, name: str) -> str:
        """Return a hint for whoever wrote an option where it is not."""
        sections = ["", *registry.sections()]
        found = {each: registry.get(each, name) for each in sections}
        others = [each for each, option in found.items() if option and not option.shared]
        if 0 < len(others) <= 2:
            return f" It is one of {' and '.join(map(header, others))}."
        names = registry.names(section)
        listed = f" Options of {header(section)}: {', '.join(names)}."
        return did_you_mean(name, names) or listed

    def _unknown_variables(self, known: list[str]) -> list[str]:
        removed = {variable(*key): key for key in REMOVED}
        problems = []
        for name in self._environ:
            if name in known or _SERVICE_LINK.fullmatch(name):
                continue
            if name in removed:
                warn_if_removed(*removed[name], f"environment {name}")
            else:
                hint = did_you_mean(name, known)
                problems.append(f"environment {name}: no active plugin has this option.{hint}")
        return problems


class Config:
    """The configuration of one server: typed values and their origins. It does not change."""

    def __init__(self, registry: OptionRegistry, sources: Sources) -> None:
        """Give every declared option its value.

        :raises UsageError: naming every unknown key and every value of a wrong type, together.
        """
        problems = sources.unknown(registry)
        self.file = sources.file
        self.ignored = tuple(sources.ignored)
        self.folder = sources.folder
        self._registry = registry
        self._values: dict[tuple[str, str], OptionValue] = {}
        for option in registry:
            try:
                self._values[option.section, option.name] = sources.value(option)
            except UsageError as error:
                problems.append(str(error))
        self._scoped: dict[str, dict[tuple[str, str], OptionValue]] = {}
        for scope, raws in sources.scoped.items():
            values = self._scoped[scope] = {}
            for key, raw in raws.items():
                if warn_if_removed(*_split(key), raw.origin):
                    continue
                try:
                    value = _scoped_value(registry, scope, key, raw)
                    values[value.option.section, value.option.name] = value
                except UsageError as error:
                    problems.append(str(error))
        if problems:
            raise UsageError("\n".join(problems))

    def visible_to(self, plugin: str) -> Config:
        """Return what a plugin may see: the core's options but for secrets, and its own.

        :param plugin: the plugin as ``Option.declared_by`` has it.
        """

        def visible(option: Option) -> bool:
            core = option.declared_by == "fcp" and not option.secret
            return core or option.declared_by == plugin

        view = copy.copy(self)
        view._values = {k: v for k, v in self._values.items() if visible(v.option)}
        view._scoped = {
            scope: {k: v for k, v in values.items() if visible(v.option)}
            for scope, values in self._scoped.items()
        }
        return view

    def scopes(self, kind: str | None = None) -> list[str]:
        """Return the scopes that have a section, such as ``population:phones/all``.

        :param kind: "population" or "task": only these, by their own names.
        """
        if kind is None:
            return sorted(self._scoped)
        return sorted(s.partition(":")[2] for s in self._scoped if s.startswith(f"{kind}:"))

    def scoped(self, population: str = "", task: str = "") -> Config:
        """Return the configuration as it is for a population, or for a task of one.

        Names without a section of their own are allowed.
        """
        layers = [
            self._scoped[scope]
            for scope in (f"population:{population}", f"task:{task}")
            if scope in self._scoped
        ]
        if not layers:
            return self
        view = copy.copy(self)
        for layer in layers:
            view._values = {**view._values, **layer}
        return view

    def get(self, name: str) -> Any:
        """Return the value of a core option.

        :raises KeyError: if the core has no option of that name.
        """
        return self._values["", name].value

    def section(self, name: str, overlay: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the values of a section's options by name; empty if none is declared.

        :param overlay: values that win over the configured ones, for instance a task's own.
        :raises UsageError: for an overlay with an unknown name or a wrong type, or with an option
            that only the operator may set.
        """
        wanted = normal(name)
        values = {
            key: self._value(section, key).value
            for section, key in self._values
            if section == wanted
        }
        for key, raw in (overlay or {}).items():
            option = self._registry.get(wanted, normal(key).lower())
            where = f"option {key} of {name}"
            if option is None and warn_if_removed(wanted, normal(key).lower(), where):
                continue
            if option is None:
                raise UsageError(
                    f"{where}: there is no such option.{did_you_mean(key, values)} "
                    f"Options: {', '.join(values) or 'none'}."
                )
            if option.operator_only:
                raise UsageError(
                    f"{where}: a task cannot set it; the operator can, with {option.label}."
                )
            values[option.name] = option.parse(raw, where, self.folder)
        return MappingProxyType(values)

    def origin(self, section: str, name: str) -> str:
        """Return where a value came from: ``default``, ``setup.cfg [fcp] storage``, ..."""
        return self._value(normal(section), name).origin

    def _value(self, section: str, name: str) -> OptionValue:
        """Return an option's value, or that of its kind if it has none of its own."""
        value = self._values[section, name]
        if value.option.shared and value.origin == "default":
            return self._values[section.partition(".")[0], name]
        return value

    def options(self) -> list[OptionValue]:
        """Return all options with their values, section by section; then what is overridden.

        What one thing has from its kind is not among them.
        """
        everywhere = [
            value
            for _, value in sorted(self._values.items())
            if not value.option.shared or value.origin != "default"
        ]
        overridden = [
            value for scope in self.scopes() for _, value in sorted(self._scoped[scope].items())
        ]
        return everywhere + overridden


def _split(key: str) -> tuple[str, str]:
    """Return the section and the name of an option's key."""
    section, _, name = key.rpartition(".")
    return section, name


def _scoped_value(registry: OptionRegistry, scope: str, key: str, raw: _Raw) -> OptionValue:
    kind, _, name = scope.partition(":")
    section, word = _split(key)
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{raw.origin}: {name!r} is no name of a {kind}; it must match "
            f"{NAME_PATTERN.pattern!r}."
        )
    option = registry.get(section, word)
    if option is None or kind not in option.scopes:
        allowed = [other.key for other in registry if kind in other.scopes]
        problem = "there is no such option" if option is None else f"a {kind} cannot override it"
        core = [name for name in allowed if "." not in name]
        hint = did_you_mean(key, allowed) if option is None else ""
        listed = f" A {kind} can override {', '.join(core)}, and options such as {allowed[-1]}."
        raise UsageError(f"{raw.origin}: {problem}.{hint or listed}")
    return OptionValue(option, option.parse(raw.value, raw.origin, raw.base), raw.origin, scope)


def load_config(registry: OptionRegistry, sources: Sources | None = None) -> Config:
    """Read the values of the registry's options from the file, the environment and overrides.

    :raises UsageError: as :class:`Sources` and :class:`Config` do.
    """
    return Config(registry, Sources() if sources is None else sources)
