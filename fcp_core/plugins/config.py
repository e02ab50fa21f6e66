"""The configuration: options that are declared, sources that give values, and where each came from.

The order, the last one wins: declared default, one file, the environment, what the caller or the
command line gives. The file is the one that is named (``--config``, ``FCP_CONFIG``), or the first
of ``setup.cfg``, ``fcp.cfg`` and ``pyproject.toml`` in the working folder that has a section of
ours; there is no search upward. Core options stand in ``[fcp]``, those of one thing in a section of
its own: ``[fcp:storage.sqlite]``, in TOML ``[tool.fcp."storage.sqlite"]``. In the environment, a
core option is called like ``FCP_RETRY_MIN``, and ``path`` of ``[fcp:storage.sqlite]`` is called
``FCP_STORAGE_SQLITE__PATH``.
"""

from __future__ import annotations

import configparser
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.plugins.values import CONVERTERS, convert, format_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The files that are looked for in the working folder, in this order.
FILES = ("setup.cfg", "fcp.cfg", "pyproject.toml")

#: Variables that a container platform sets for a service that happens to be called "fcp".
_SERVICE_LINK = re.compile(
    r"FCP_(?:\w+_)?(?:SERVICE_(?:HOST|PORT\w*)|PORT(?:_\d+_(?:TCP|UDP)\w*)?)"
)


@dataclass(frozen=True)
class Option:
    """A declared option.

    :param section: ``""`` for ``[fcp]``, else the name of what it belongs to.
    :param default: in the form the file would have it; None: not set unless given.
    :param minimum: the smallest number allowed.
    :param secret: never shown; better a path to a file with the secret.
    :param operator_only: a task cannot set it: it is the operator's word against the author's.
    :param declared_by: the plugin, or "fcp".
    """

    section: str
    name: str
    type: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    secret: bool = False
    operator_only: bool = False
    declared_by: str = "fcp"

    @property
    def label(self) -> str:
        """Its section and name as in a file: ``[fcp:storage.sqlite] path``."""
        return _label(self.section, self.name)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        if not self.section:
            return f"FCP_{self.name}".upper()
        return f"FCP_{re.sub('[^A-Za-z0-9]', '_', self.section)}__{self.name}".upper()

    def parse(self, raw: object, origin: str, base: Path) -> Any:
        """Convert and check a raw value.

        :raises UsageError: with the origin, the value and what was expected.
        """
        hint = ""
        try:
            value = convert(self.type, raw, base)
            if self.choices and value not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise ValueError(f"one of {', '.join(self.choices)}")
            if self.minimum is not None and value < self.minimum:
                raise ValueError(f"at least {self.minimum:g}")
        except ValueError as error:
            shown = "***" if self.secret else repr(raw)
            raise UsageError(f"{origin}: {shown} is not {error}.{hint}") from None
        return value


@dataclass(frozen=True)
class OptionValue:
    """An option, its value and where the value came from."""

    option: Option
    value: Any
    origin: str

    @property
    def shown(self) -> str:
        """The value for a person to read; secrets are hidden."""
        if self.value is None:
            return ""
        if self.option.secret:
            return "***"
        if isinstance(self.value, tuple):
            return ", ".join(self.value)
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if self.option.type == "duration":
            return f"{self.value:g}s"
        if self.option.type == "bytes":
            return format_bytes(self.value)
        return str(self.value)


class OptionRegistry:
    """Collects the options that the core and the plugins declare."""

    def __init__(self) -> None:
        self._options: dict[tuple[str, str], Option] = {}
        #: Who declares now; the plugin manager sets it.
        self.owner = "fcp"

    def add(
        self,
        section: str,
        name: str,
        type: str,
        default: Any,
        help: str,
        *,
        choices: Sequence[str] = (),
        minimum: float | None = None,
        secret: bool = False,
        operator_only: bool = False,
    ) -> None:
        """Declare an option.

        :param section: ``<kind>.<name>`` of the thing it is for, such as ``storage.sqlite``; ``""``
            is the core's own.
        :param name: lower case, words divided by ``_``.
        :param type: str, int, float, bool, duration, bytes, list, path or choice.
        :param default: a value or its text; None if it is not set by default.
        :param choices: the values that a "choice" may have.
        :param operator_only: a task's own options cannot set it.
        :raises UsageError: if it is declared already, or the type or the default is wrong.
        """
        section, name = _normal(section), _normal(name).lower()
        option = Option(
            section,
            name,
            type,
            default,
            help,
            tuple(choices),
            minimum,
            secret,
            operator_only,
            self.owner,
        )
        where = f"option {option.label} of {self.owner}"
        if type not in CONVERTERS or bool(choices) != (type == "choice"):
            raise UsageError(
                f"{where}: the type must be one of {', '.join(CONVERTERS)}, and only a choice has "
                f"choices; it is {type!r} with {len(choices)} choices."
            )
        other = self._options.get((section, name))
        if other is not None:
            raise UsageError(f"{where} is declared already, by {other.declared_by}.")
        if default is not None:
            option.parse(default, f"{where}: default", Path())
        self._options[section, name] = option

    def __iter__(self) -> Iterator[Option]:
        """Iterate over the options, section by section."""
        return iter(sorted(self._options.values(), key=lambda o: (o.section, o.name)))

    def get(self, section: str, name: str) -> Option | None:
        """Return a declared option, or None."""
        return self._options.get((section, name))

    def option(self, section: str, name: str) -> Option:
        """Return an option that is declared.

        :raises KeyError: if it is not.
        """
        return self._options[section, name]

    def names(self, section: str) -> list[str]:
        """Return the names of a section's options, sorted."""
        return sorted(name for other, name in self._options if other == section)

    def sections(self) -> list[str]:
        """Return the names of the sections that have options, sorted; without the core's."""
        return sorted({section for section, _ in self._options if section})


@dataclass(frozen=True)
class _Raw:
    value: object
    origin: str
    base: Path


class Sources:
    """The raw values of a file, the environment and the caller, before any option is known.

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
        for key, value in (overrides or {}).items():
            section, _, name = _normal(key).rpartition(".")
            self._overrides[section, name.lower()] = _Raw(
                value, f"{overrides_origin}: {key}", self.folder
            )
        self._find_file(config_file or environ.get("FCP_CONFIG") or None)

    def _find_file(self, named: str | os.PathLike[str] | None) -> None:
        if named is not None:
            path = self.folder / Path(named).expanduser()
            sections = _read_file(path, str(path))
            if sections is None:
                wanted = "[tool.fcp]" if path.suffix == ".toml" else "[fcp] or [fcp:...]"
                raise UsageError(f"the configuration file {path} has no section {wanted}.")
            self._use_file(path, str(path), sections)
            return
        for name in FILES:
            path = self.folder / name
            if not path.is_file():
                continue
            sections = _read_file(path, name)
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
            self._sections[section] = f"{shown} {_header(section, toml)}"
            for name, value in values.items():
                origin = f"{shown} {_header(section, toml)} {name}"
                self._file[section, name] = _Raw(value, origin, path.parent)

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
        """Return one sentence for each value that no option was declared for."""
        sections = registry.sections()
        problems = []
        for section, origin in self._sections.items():
            if section and section not in sections:
                hint = did_you_mean(section, sections, _header)
                problems.append(f"{origin}: no active plugin has such options.{hint}")
        for (section, name), raw in [*self._file.items(), *self._overrides.items()]:
            if section and section not in sections:
                if section not in self._sections:
                    hint = did_you_mean(section, sections)
                    problems.append(f"{raw.origin}: no active plugin has such options.{hint}")
            elif registry.get(section, name) is None:
                names = registry.names(section)
                listed = f" Options of {_header(section)}: {', '.join(names)}."
                hint = did_you_mean(name, names) or listed
                problems.append(f"{raw.origin}: there is no such option.{hint}")
        variables = [option.variable for option in registry]
        for variable in self._environ:
            if variable not in variables and not _SERVICE_LINK.fullmatch(variable):
                hint = did_you_mean(variable, variables)
                problems.append(f"environment {variable}: there is no such option.{hint}")
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
        if problems:
            raise UsageError("\n".join(problems))

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
        values = {
            key: value.value
            for (section, key), value in self._values.items()
            if section == _normal(name)
        }
        for key, raw in (overlay or {}).items():
            option = self._registry.get(_normal(name), _normal(key).lower())
            if option is None:
                raise UsageError(
                    f"option {key} of {name}: there is no such option.{did_you_mean(key, values)} "
                    f"Options: {', '.join(values) or 'none'}."
                )
            if option.operator_only:
                raise UsageError(
                    f"option {key} of {name}: a task cannot set it; the operator can, with "
                    f"{option.label}."
                )
            values[option.name] = option.parse(raw, f"option {key} of {name}", self.folder)
        return MappingProxyType(values)

    def origin(self, section: str, name: str) -> str:
        """Return where a value came from: ``default``, ``setup.cfg [fcp] storage``, ..."""
        return self._values[_normal(section), name].origin

    def options(self) -> list[OptionValue]:
        """Return all options with their values, section by section."""
        return [self._values[option.section, option.name] for option in self._registry]


def load_config(registry: OptionRegistry, sources: Sources | None = None) -> Config:
    """Give the registry's options their values from the file, the environment and overrides.

    :raises UsageError: as :class:`Sources` and :class:`Config` do.
    """
    return Config(registry, Sources() if sources is None else sources)


def did_you_mean(word: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return `` Did you mean X?`` for the known word that is most like *word*, or nothing."""
    candidates = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return f" Did you mean {show(candidates[close[0]])}?" if close else ""


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _header(section: str, toml: bool = False) -> str:
    if toml:
        return f'[tool.fcp."{section}"]' if section else "[tool.fcp]"
    return f"[fcp:{section}]" if section else "[fcp]"


def _label(section: str, name: str) -> str:
    return f"{_header(section)} {name}"


def _read_file(path: Path, shown: str) -> dict[str, dict[str, Any]] | None:
    """Return the sections of ours, keys normalised; None if there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration file {shown} cannot be read: {error}.") from None
    found = _read_toml(text, shown) if path.suffix == ".toml" else _read_cfg(text, shown)
    if not found:
        return None
    sections: dict[str, dict[str, Any]] = {}
    for section, values in found:
        target = sections.setdefault(_normal(section), {})
        for key, value in values.items():
            name = _normal(key).lower()
            if name in target:
                raise UsageError(f"{shown} {_label(section, key)}: the key is there twice.")
            target[name] = value
    return sections


def _read_cfg(text: str, shown: str) -> list[tuple[str, Mapping[str, Any]]]:
    # No default section: another tool's [DEFAULT] must not leak into ours.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, source=shown)
    except configparser.Error as error:
        message = " ".join(str(error).split())
        raise UsageError(f"the configuration file {shown} cannot be read: {message}.") from None
    return [
        (section[4:], dict(parser.items(section)))
        for section in parser.sections()
        if section == "fcp" or section.startswith("fcp:")
    ]


def _read_toml(text: str, shown: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # [tool.fcp.storage.sqlite] is a table inside of "storage", which cannot be a string too.
        hint = ' Sections are written [tool.fcp."storage.sqlite"].' if "[tool.fcp." in text else ""
        raise UsageError(f"the configuration file {shown}: {error}.{hint}") from None
    table = document.get("tool", {}).get("fcp")
    if table is None:
        return []
    found: list[tuple[str, Mapping[str, Any]]] = []

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        scalars = {key: value for key, value in values.items() if not isinstance(value, dict)}
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        if scalars or not tables:
            found.append((prefix, scalars))
        for key, value in tables.items():
            walk(f"{prefix}.{key}" if prefix else key, value)

    if not isinstance(table, dict):
        raise UsageError(f"{shown}: tool.fcp must be a table.")
    walk("", table)
    return found
