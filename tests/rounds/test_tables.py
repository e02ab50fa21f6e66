"""Every machine has a table of its moves, and nothing moves but by it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from enum import Enum
from pathlib import Path

import pytest

import fcp_core
import fcp_core.rounds
import fcp_core.server.services
from fcp_aggregators import simple_protocol
from fcp_core.rounds import machine
from fcp_core.rounds.assignment import Assignment, Stage
from fcp_core.rounds.machine import InvalidTransition, Machine
from fcp_core.rounds.session import DeviceSession
from fcp_core.rounds.task import TaskMachine

for package in (fcp_core.rounds, fcp_core.server.services):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def subclasses(kind):
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


#: Those of this repository; tests of others may define some.
MACHINES = [
    kind for kind in subclasses(Machine) if kind.__module__.startswith(("fcp_core.", "fcp_aggreg"))
]
SOURCES = [
    path
    for root in (Path(fcp_core.__file__).parent, Path(simple_protocol.__file__).parent)
    for path in root.rglob("*.py")
]
each_machine = pytest.mark.parametrize("kind", MACHINES, ids=lambda kind: kind.__name__)


def make(kind, state):
    """Return a machine in a state, with nothing else about it."""
    machine = object.__new__(kind)
    Machine.__init__(machine, state)
    return machine


def test_the_machines_are_found():
    names = {kind.__name__ for kind in MACHINES}
    assert names >= {
        "Assignment", "DeviceSession", "ProtocolCall", "TaskMachine", "Waiting"
    }  # fmt: skip


@each_machine
def test_a_table_is_complete(kind):
    (states,) = {type(state) for state in kind.MOVES}
    assert issubclass(states, Enum)
    assert set(kind.MOVES) == set(states)
    for targets in kind.MOVES.values():
        assert all(isinstance(target, states) for target in targets)
        assert len(set(targets)) == len(targets)
    # Something is final, and is reached from wherever a machine may be.
    final = {state for state, targets in kind.MOVES.items() if not targets}
    assert final
    reaching = set(final)
    for _ in states:
        reaching |= {s for s, targets in kind.MOVES.items() if reaching & set(targets)}
    assert reaching == set(states)
    # And no state is there that nothing leads to, but for the first one.
    led_to = {target for targets in kind.MOVES.values() for target in targets}
    assert len(set(states) - led_to) <= 1


@each_machine
def test_it_moves_as_the_table_says_and_not_otherwise(kind, monkeypatch):
    # What a machine says of itself may need what this one lacks.
    monkeypatch.setattr(kind, "__repr__", object.__repr__)
    for state, targets in kind.MOVES.items():
        for target in kind.MOVES:
            machine = make(kind, state)
            if target in targets:
                machine.move(target)
                assert machine.state is target
            else:
                with pytest.raises(InvalidTransition):
                    machine.move(target)
                assert machine.state is state


@each_machine
def test_its_state_cannot_be_set(kind):
    first = next(iter(kind.MOVES))
    machine = make(kind, first)
    with pytest.raises(AttributeError):
        machine.state = first


def test_the_tables_are_those_that_are_drawn():
    assert Assignment.MOVES[Stage.STARTED] == (
        Stage.UPLOADING,
        Stage.KEPT,
        Stage.QUEUED,
        Stage.DROPPED,
    )
    for kind in (Assignment, TaskMachine, DeviceSession):
        first = next(iter(kind.MOVES))
        assert first not in {t for targets in kind.MOVES.values() for t in targets}
    final = {stage for stage in Stage if not Assignment.MOVES[stage]}
    assert final == {Stage.CONTRIBUTED, Stage.DROPPED}
    # Whatever happens to a device, it can be dropped.
    assert all(Stage.DROPPED in Assignment.MOVES[stage] for stage in set(Stage) - final)


def test_no_code_sets_a_state_but_the_one_method():
    """In a machine, or one from outside: anything but ``self._state`` of what is no machine."""
    names = {kind.__name__ for kind in MACHINES}
    found = []
    for path in SOURCES:
        text = path.read_text()
        if path == Path(machine.__file__) or "_state" not in text:
            continue
        tree = ast.parse(text)
        machines = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name in names]
        inside = {id(node) for machine in machines for node in ast.walk(machine)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "_state":
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                written = isinstance(node.ctx, (ast.Store, ast.Del))
                if written and (id(node) in inside or not own):
                    found.append(f"{path}:{node.lineno}")
            elif isinstance(node, ast.Constant) and node.value == "_state":
                # As in setattr(machine, "_state", ...).
                found.append(f"{path}:{node.lineno}")
    assert found == []
