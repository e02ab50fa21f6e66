"""Reads our sections of INI and TOML configuration files."""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fcp_core.errors import UsageError, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The files that are looked for in the working folder, in this order.
FILES = ("setup.cfg", "fcp.cfg", "pyproject.toml")

#: The kinds of section that hold for one population or one task: ``[fcp:population:phones/all]``.
SCOPES = ("population", "task")


def normal(name: str) -> str:
    """Return a name as it is compared: ``-`` and ``_`` are the same."""
    return name.replace("-", "_")


def normal_key(key: str) -> str:
    """Return the name of an option, with its section's name if it has one, as it is compared."""
    section, dot, name = normal(key).rpartition(".")
    return section + dot + name.lower()


def is_scope(section: str) -> bool:
    """Whether a section holds for one population or one task."""
    return section.partition(":")[0] in SCOPES and ":" in section


def header(section: str, toml: bool = False) -> str:
    """Return a section's name as a file has it."""
    if toml:
        return f'[tool.fcp."{section}"]' if section else "[tool.fcp]"
    return f"[fcp:{section}]" if section else "[fcp]"


def label(section: str, name: str) -> str:
    """Return a section and an option's name as a file has them."""
    return f"{header(section)} {name}"


def read_file(path: Path, shown: str) -> dict[str, dict[str, Any]] | None:
    """Return the sections of ours, keys normalised; None if there is none.

    :param shown: what errors call the file.
    :raises UsageError: if it cannot be read, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the configuration file {shown} cannot be read: {reason(error)}."
        ) from None
    found = (
        _read_toml(text, shown)
        if path.suffix == ".toml"
        else _read_cfg(text, shown, shared=path.name == "setup.cfg")
    )
    if not found:
        return None
    sections: dict[str, dict[str, Any]] = {}
    for section, values in found:
        target = sections.setdefault(section if is_scope(section) else normal(section), {})
        for key, value in values.items():
            name = normal_key(key)
            if name in target:
                raise UsageError(f"{shown} {label(section, key)}: the key is there twice.")
            target[name] = value
    return sections


def _refuse_strays(names: Iterable[str], shown: str, example: str, prefix: str = "") -> None:
    """Refuse sections that are surely meant for us and would be overlooked, such as ``[FCP]``.

    :param names: of the sections that are not ours.
    :param example: how ours are written.
    :param prefix: what stands before each name.
    """
    for name in names:
        if re.match(r"fcp([\W_]|$)", name.strip(), re.IGNORECASE):
            raise UsageError(
                f"{shown} [{prefix}{name}]: no section is called so, and it would be ignored; "
                f"ours are written {example}."
            )


def _read_cfg(text: str, shown: str, *, shared: bool) -> list[tuple[str, Mapping[str, Any]]]:
    # No default section: another tool's [DEFAULT] must not leak into ours.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, source=shown)
    except configparser.Error as error:
        message = " ".join(str(error).split())
        raise UsageError(f"the configuration file {shown} cannot be read: {message}.") from None
    ours = [name for name in parser.sections() if name == "fcp" or name.startswith("fcp:")]
    others = [name for name in parser.sections() if name not in ours]
    _refuse_strays(others, shown, "[fcp] and [fcp:server]")
    if "DEFAULT" in others and not shared:
        raise UsageError(
            f"{shown} [DEFAULT]: there are no defaults of sections here, and it would be ignored; "
            "what holds for the whole server is written in [fcp]."
        )
    return [(name[4:], dict(parser.items(name))) for name in ours]


def _read_toml(text: str, shown: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # [tool.fcp.storage.sqlite] is a table inside of "storage", which cannot be a string too.
        hint = ' Sections are written [tool.fcp."storage.sqlite"].' if "[tool.fcp." in text else ""
        raise UsageError(f"the configuration file {shown}: {error}.{hint}") from None
    tools = document.get("tool", {})
    example = '[tool.fcp] and [tool.fcp."storage.sqlite"]'
    _refuse_strays(document, shown, example)
    _refuse_strays([name for name in tools if name != "fcp"], shown, example, "tool.")
    table = tools.get("fcp")
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
