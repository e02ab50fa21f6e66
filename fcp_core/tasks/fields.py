"""Tables of a TOML file as the fields of a specification, by the fields' types."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from fcp_core.rounds.specification import Seconds
from fcp_core.tasks.tomlfile import TomlTable


def read_fields(
    table: TomlTable, struct: type[msgspec.Struct], besides: Collection[str]
) -> dict[str, Any]:
    """Return the fields of a struct that stand in a table, by name.

    Times may be written like ``10m``, enums as their values.

    :param besides: the fields that do not.
    :raises UsageError: for a value of a wrong kind, or a field that is missing and must be there.
    """
    kinds = get_type_hints(struct, include_extras=True)
    read = {}
    for field in msgspec.structs.fields(struct):
        if field.name in besides:
            continue
        if field.required or field.name in table.names():
            read[field.name] = _read(table, field.name, _inner(kinds[field.name]))
        else:
            table.know(field.name)
    return read


def _inner(kind: Any) -> Any:
    """Return a type without the None that it may be."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    return kind


def _read(table: TomlTable, name: str, kind: Any) -> Any:
    if kind == Seconds:
        return table.duration(name)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return table.choice(name, get_args(kind), "")
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(table.choice(name, tuple(member.value for member in kind), ""))
    if get_origin(kind) is not None:
        kinds: tuple[type[Any], ...] = (dict,) if get_origin(kind) is Mapping else (list,)
        value = table.get(name, kinds[0])
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise table.wrong(name, str(error)) from None
    return table.get(name, kind)
