"""The page about the architecture says what the code does: the rooms and the machines' tables."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcp_core.rounds
from fcp_core.rounds.assigner import Waiting
from fcp_core.rounds.assignment import Assignment, ProtocolCall
from fcp_core.rounds.machine import Machine
from fcp_core.rounds.membership import Lease
from fcp_core.rounds.session import DeviceSession
from fcp_core.rounds.task import TaskMachine
from fcp_core.server.services.streams import Stream
from fcp_core.storage import reference
from fcp_core.storage.integrity import kinds

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MACHINES = {
    "Task": TaskMachine,
    "Assignment": Assignment,
    "Session": DeviceSession,
    "Candidate": Waiting,
    "Protocol call": ProtocolCall,
    "Lease": Lease,
    "Stream": Stream,
}
END = "[*]"


def edges(title: str) -> list[tuple[str, str]]:
    """Return the moves in the diagram under a heading."""
    found = re.search(rf"^### {title}\n(?:(?!^#).)*?^```mermaid\n(.*?)^```$", PAGE, re.M | re.S)
    assert found, f"there is no diagram under {title}"
    first, *lines = found[1].splitlines()
    assert first == "stateDiagram-v2"
    moves = [re.fullmatch(r" +(\S+) --> (\S+)(?: : .+)?", line) for line in lines]
    assert all(moves), lines
    return [(move[1], move[2]) for move in moves if move]


@pytest.mark.parametrize("title", MACHINES)
def test_diagrams_are_the_tables(title: str) -> None:
    table = MACHINES[title].MOVES
    expected = {(state.value, after.value) for state in table for after in table[state]}
    expected |= {(state.value, END) for state in table if not table[state]}
    expected.add((END, next(iter(table)).value))
    drawn = edges(title)
    assert set(drawn) == expected
    assert len(drawn) == len(expected)


def test_every_machine_of_the_core_is_drawn() -> None:
    for module in pkgutil.iter_modules(fcp_core.rounds.__path__, "fcp_core.rounds."):
        importlib.import_module(module.name)
    homes = ("fcp_core.rounds.", "fcp_core.server.")
    machines = {kind for kind in leaves(Machine) if kind.__module__.startswith(homes)}
    assert machines == set(MACHINES.values())


def leaves(kind: type) -> Iterator[type]:
    """Yield the classes below one that have none below them."""
    for below in kind.__subclasses__():
        if below.__subclasses__():
            yield from leaves(below)
        else:
            yield below


def test_the_rooms_are_those_of_the_import_rules() -> None:
    spec = importlib.util.spec_from_file_location(
        "layout_rules", ROOT / "tests" / "layout" / "test_layout.py"
    )
    assert spec is not None
    assert spec.loader is not None
    layout = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layout)
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| ([\w, ]+) \|$", PAGE.split("Inside `server`")[0], re.M
    )
    drawn = {room: set(re.findall(r"\w+", below)) - {"nothing"} for room, below in rows}
    assert drawn == layout.BELOW


def test_the_files_that_the_page_names_are_there() -> None:
    core = ROOT / "fcp_core"
    folders = (ROOT, core, core / "plugins", core / "server" / "services")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert named
    assert {name for name in named if not any((f / name).exists() for f in folders)} == set()


def test_the_data_model_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "data-model.md").read_text(encoding="utf-8")
    assert page == reference.render(), "run 'make docs'"
    drawn = re.findall(r"^### (\w+)\n\n[^\n]+\n\n```mermaid\nstateDiagram", page, re.M)
    # What is only between members has its place on the page about the architecture.
    assert set(drawn) == {machine.__name__ for machine in MACHINES.values()} - {"Stream"}
    assert set(re.findall(r"^### ([a-z_]+)$", page, re.M)) == set(kinds())
