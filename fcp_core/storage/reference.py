"""Generates the page about the data model from the records and the tables of the machines.

``python -m fcp_core.storage.reference docs`` writes ``docs/data-model.md``. A test compares.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import fcp_core.rounds
from fcp_core.rounds.machine import Machine
from fcp_core.storage.contract import Record
from fcp_core.storage.integrity import kinds

#: Where the state of a machine is kept.
_PLACES: Mapping[str, str] = {
    "TaskMachine": "`state` of a `task`",
    "Lease": "`holder` and `expires` of a `lease`, as one member sees them",
    "Assignment": "not stored: it follows from the device's token and from the shards",
    "DeviceSession": "not stored: it is lost with the process",
    "Waiting": "not stored: it is lost with the process",
    "ProtocolCall": "not stored: after a restart a call is a first one",
}

_HEAD = """\
# Data model

What servers store, and the states of what they work with. `make docs` makes this page from the
records (`fcp_core/storage/records.py`) and from the tables of moves of the machines, so it says
what the code does. [Storage](storage.md) says where it lies and how to look after it.

A record is MessagePack, keyed by the names of its fields. A field that is missing, since an older
release wrote the record, has its default; one that is not known is dropped. So two releases read
each other's records.

## Records
"""


def render() -> str:
    """Return the page."""
    found = sorted(kinds().items())
    lines = [_HEAD, "| kind | key | indexed by | |", "|---|---|---|---|"]
    for name, kind in found:
        indexed = ", ".join(f"`{field}`" for field in kind.INDEXES)
        lines.append(f"| [`{name}`](#{name}) | `{kind.KEY}` | {indexed} | {_summary(kind)} |")
    lines += ["", "```mermaid", "erDiagram", *_relations(dict(found)), "```"]
    for name, kind in found:
        lines += ["", f"### {name}", "", *_paragraphs(kind)]
        lines += ["| field | type | default | |", "|---|---|---|---|"]
        meanings = _parameters(kind)
        for field in fields(kind):
            cells = (f"`{field.name}`", f"`{field.type}`".replace("|", "\\|"), _default(field))
            lines.append(f"| {' | '.join(cells)} | {meanings.get(field.name, '')} |")
    lines += ["", "## States"]
    for machine in machines():
        place = _PLACES[machine.__name__]
        lines += ["", f"### {machine.__name__}", "", f"{_summary(machine)} Its state is {place}."]
        lines += ["", "```mermaid", "stateDiagram-v2", *_moves(machine.MOVES), "```"]
    return "\n".join(lines) + "\n"


def machines() -> list[type[Machine[Any]]]:
    """Return the machines of the core, sorted by name."""
    for module in pkgutil.iter_modules(fcp_core.rounds.__path__, "fcp_core.rounds."):
        importlib.import_module(module.name)
    found: list[type[Machine[Any]]] = []
    above: list[type[Machine[Any]]] = [Machine]
    while above:
        machine = above.pop()
        below = machine.__subclasses__()
        above += below
        if not below and machine.__module__.startswith("fcp_core.rounds."):
            found.append(machine)
    return sorted(found, key=lambda machine: machine.__name__)


def _moves(table: Mapping[Any, Any]) -> Iterator[str]:
    yield f"    [*] --> {next(iter(table)).value}"
    for state, following in table.items():
        for after in following:
            yield f"    {state.value} --> {after.value}"
        if not following:
            yield f"    {state.value} --> [*]"


def _relations(found: dict[str, type[Record]]) -> Iterator[str]:
    """Yield what belongs to what: a field with the name of another record's key refers to it."""
    keys = {kind.KEY: name for name, kind in found.items() if kind.KEY.endswith("_id")}
    for name, kind in found.items():
        for field in fields(kind):
            other = keys.get(field.name)
            if other is not None and other != name:
                yield f"    {other} ||--o{{ {name} : {field.name}"
    yield "    member |o--o{ lease : holder"
    yield "    lease |o--o{ task : population"


def _text(thing: type) -> str:
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    return re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text)


def _summary(thing: type) -> str:
    return " ".join(_text(thing).partition("\n\n")[0].split())


def _paragraphs(kind: type[Record]) -> Iterator[str]:
    for paragraph in _text(kind).split("\n\n"):
        if not paragraph.startswith(":"):
            yield " ".join(paragraph.split())
            yield ""


def _parameters(kind: type[Record]) -> dict[str, str]:
    found = re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", _text(kind), re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _default(field: Field[Any]) -> str:
    return "" if field.default is MISSING else f"`{field.default!r}`"


if __name__ == "__main__":
    (Path(sys.argv[1]) / "data-model.md").write_text(render(), encoding="utf-8")
