"""Specifications: every field passes through every codec, and what was stored earlier is read."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from fcp_core.admin.messages import EligibilitySettings, Submission
from fcp_core.errors import UsageError
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.protos.population_eligibility_spec_pb2 import PopulationEligibilitySpec
from fcp_core.protocol.status import StatusError
from fcp_core.rounds import eligibility, tasks
from fcp_core.rounds.specification import (
    AssignmentMode,
    EligibilityTask,
    PolicyChoice,
    Seconds,
    TaskSpec,
)
from fcp_core.server.services.store import TaskStore, status_of
from fcp_core.storage.records import BlobRecord, EligibilityTaskRecord, TaskRecord
from fcp_core.storage.shards import TaskOverError
from fcp_core.tasks import analytics, taskfile
from fcp_core.tasks.eligibilityfile import read_eligibility_file
from fcp_plugins.storage_memory import MemoryStorage

#: Written by the version before these structs.
STORED = json.loads((Path(__file__).parents[1] / "data/stored_specifications.json").read_text())

ROUTER = plan_pb2.ClientOnlyPlan()
ROUTER.phase.federated_compute_eligibility.SetInParent()


class GrownSpec(TaskSpec, frozen=True):
    """A specification with fields that the next version might add."""

    patience: Seconds | None = None
    shape: Literal["round", "square"] = "round"
    weights: Mapping[str, float] = {}


def value_of(kind: Any, default: Any) -> Any:
    """Return a value of a type that is not the default."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return next(choice for choice in arguments if choice != default)
    if get_origin(kind) is Mapping:
        return {value_of(arguments[0], None): value_of(arguments[1], None)}
    if get_origin(kind) is Sequence:
        return (value_of(arguments[0], None),)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(member for member in kind if member is not default)
    if kind is PolicyChoice:
        return PolicyChoice(**full(PolicyChoice))
    values = {bytes: b"\x00\xff", str: "x", int: 3, float: 2.5, Any: [1, {"a": None}]}
    return values[kind]


def full(struct: type[msgspec.Struct], **known: Any) -> dict[str, Any]:
    """Return a value for each field of a struct, none of them the default."""
    kinds = get_type_hints(struct, include_extras=True)
    fields = msgspec.structs.fields(struct)
    return {f.name: known.get(f.name) or value_of(kinds[f.name], f.default) for f in fields}


def record_of(spec: bytes) -> TaskRecord:
    return TaskRecord("id", "people/all", "sum/all", "open", "aggregation", spec, 1.0)


@pytest.mark.parametrize("struct", [TaskSpec, GrownSpec])
def test_every_field_is_stored(struct):
    spec = struct(**full(struct))
    apart = {name: getattr(spec, name) for name in struct.APART}
    assert struct.from_bytes(spec.to_bytes(), **apart) == spec
    # What the storage keeps apart is not in there twice.
    assert set(msgspec.msgpack.decode(spec.to_bytes())) == set(spec.fields()) - set(apart)


def test_every_field_survives_a_restart():
    spec = TaskSpec(**full(TaskSpec))

    async def main():
        storage = MemoryStorage()
        record = TaskRecord("id", spec.population, spec.name, "open", "a", spec.to_bytes(), 1.0)
        await TaskStore(storage).add(record, spec)
        (loaded,) = (await TaskStore(storage).load()).tasks
        # What is large is read when its turn comes.
        assert (loaded.spec.plan, loaded.spec.checkpoint) == (spec.plan, b"")
        found = await TaskStore(storage).whole(loaded.record)
        assert found == spec
        assert status_of(record).goal_count == spec.goal_count
        # Another member may have ended it in between.
        await TaskStore(storage).end(replace(record, state="completed"), b"result")
        with pytest.raises(TaskOverError):
            await TaskStore(storage).whole(loaded.record)

    asyncio.run(main())


def test_every_field_travels_as_json():
    spec = TaskSpec(**full(TaskSpec))
    message = msgspec.json.encode(Submission.of(spec, "key"))
    read = msgspec.json.decode(message, type=Submission)
    assert (read.to_spec(), read.key) == (spec, "key")
    assert type(read.to_spec()) is TaskSpec
    # A submission has the fields because it is a specification, not because it repeats them.
    assert set(Submission.__annotations__) == {"key"}
    assert msgspec.json.decode(message)["plan"] == base64.b64encode(spec.plan).decode()
    least = TaskSpec("p", "n", plan=b"", aggregation=b"", goal_count=1)
    required = [f.name for f in msgspec.structs.fields(TaskSpec) if f.required]
    assert list(json.loads(msgspec.json.encode(Submission.of(least)))) == required


def toml(fields: Mapping[str, Any]) -> str:
    """Return lines of TOML."""

    def written(value):
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{k} = {written(v)}" for k, v in value.items()) + " }"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(written, value)) + "]"
        return json.dumps(value.value if isinstance(value, Enum) else value)

    return "".join(f"{name} = {written(value)}\n" for name, value in fields.items())


QUERY = """
[[query]]
collection_uri = "app:/c"
vectors = { x = "int64" }
[result]
sum = ["x"]
"""


@pytest.mark.parametrize("struct", [TaskSpec, GrownSpec])
def test_every_field_may_stand_in_a_task_file(struct, monkeypatch):
    for module in (taskfile, analytics):
        monkeypatch.setattr(module, "TaskSpec", struct)
    fields = {name: value for name, value in full(struct).items() if name not in taskfile.MADE}
    fields |= {"options": {"x": {"y": 1}}, "costs": ({"type": "x"},)}
    spec = taskfile.parse_task(f"[task]\n{toml(fields)}{QUERY}").to_spec()
    assert {name: getattr(spec, name) for name in fields} == fields
    for name in taskfile.MADE:
        with pytest.raises(UsageError, match=f"task.{name}: there is no such key"):
            taskfile.parse_task(f"[task]\n{toml({**fields, name: 'x'})}{QUERY}")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("options = 3", "line 2: task.options: it must be a table"),
        ("options = { x = 3 }", "line 2: task.options: Expected `object`, got `int`"),
        ("aggregators = { x = 3 }", "line 2: task.aggregators: Expected `str`, got `int`"),
        ("protocol = 3", "line 2: task.protocol: it must be a string"),
        ('assignment_mode = "both"', "line 2: .*'both' is not one of single, multiple"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(line, problem):
    fields = 'population = "p"\nname = "n"\ngoal_count = 1\n'
    with pytest.raises(UsageError, match=problem):
        taskfile.parse_task(f"[task]\n{line}\n{fields}{QUERY}")


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_an_over_selection_that_is_no_number_is_refused(value):
    fields = 'population = "p"\nname = "n"\ngoal_count = 1\n'
    with pytest.raises(StatusError, match="over_selection must be at least 1 and finite"):
        taskfile.parse_task(f"[task]\nover_selection = {value}\n{fields}{QUERY}").to_spec()


@pytest.mark.parametrize(
    ("struct", "name"),
    [(TaskSpec, "eligibility"), (EligibilityTask, "task_names"), (EligibilityTask, "covers")],
)
def test_a_text_is_no_list_of_its_letters(struct, name):
    with pytest.raises(TypeError, match=f"{name} must be a list, not the text 'fifo'"):
        struct(**{**full(struct), name: "fifo"})


def test_every_field_of_an_eligibility_task_passes(tmp_path):
    task = EligibilityTask(**full(EligibilityTask, plan=ROUTER.SerializeToString()))
    stored = task.to_bytes()
    assert EligibilityTask.from_bytes(stored, plan=task.plan, checkpoint=task.checkpoint) == task
    message = msgspec.json.encode(EligibilitySettings.of(task))
    assert msgspec.json.decode(message, type=EligibilitySettings).to_task() == task
    assert EligibilitySettings.__annotations__ == {}

    for name in ("plan", "checkpoint"):
        (tmp_path / name).write_bytes(getattr(task, name))
    fields = task.fields() | {"plan": "plan", "checkpoint": "checkpoint", "arguments": "\x00"}
    (choice,) = fields.pop("policies")
    policy = {"policy": choice.policy, "task_names": choice.task_names, "x": 1}
    text = f'[eligibility]\npopulation = "p"\n{toml(fields)}[[policy]]\n{toml(policy)}'
    (tmp_path / "task.toml").write_text(text)
    expected = {
        **task.fields(),
        "arguments": b"\x00",
        "policies": [PolicyChoice(choice.policy, {"x": 1}, choice.task_names)],
    }
    assert read_eligibility_file(tmp_path / "task.toml") == ("p", EligibilityTask(**expected))


# What earlier versions stored.


def test_a_task_that_was_stored_earlier_is_read():
    full_spec = TaskSpec(
        population="people/all",
        name="sum/all",
        plan=b"plan",
        aggregation=b"\x01aggregation\xff",
        goal_count=10,
        checkpoint=b"checkpoint",
        minimum_count=7,
        assignment_mode=AssignmentMode.MULTIPLE,
        deadline=60.5,
        over_selection=1.5,
        max_at_work=30,
        resources="uri",
        slices={"served": {0: b"zero", 7: b"seven"}},
        result_format="federated_compute",
        protocol="simple",
        selection="uniform",
        eligibility=["minimum_separation"],
        aggregators={"federated_sum": "krum"},
        options={"uniform": {"window": "5s", "deep": {"a": [1, 2.5, None, True]}}},
    )
    blobs = {
        "plan": b"plan",
        "checkpoint": b"checkpoint",
        "slice/0/served": b"zero",
        "slice/7/served": b"seven",
    }

    async def main():
        storage = MemoryStorage()
        record = record_of(base64.b64decode(STORED["task"]["full"]))

        def put(tx):
            tx.put(record)
            for name, data in blobs.items():
                tx.put(BlobRecord(f"id/{name}", "id", data))

        await storage.transact(put)
        (loaded,) = (await TaskStore(storage).load()).tasks
        found = await TaskStore(storage).whole(loaded.record)
        assert found == full_spec

    asyncio.run(main())


def test_a_task_without_a_deadline_that_was_stored_earlier_is_read():
    """The bounds of the admin API do not hold for what is stored."""
    least = TaskSpec.from_bytes(
        base64.b64decode(STORED["task"]["least"]), population="p", name="t", plan=b"plan"
    )
    assert least == TaskSpec("p", "t", plan=b"plan", aggregation=b"a", goal_count=1)
    endless = base64.b64decode(STORED["task"]["endless"])
    again = TaskSpec.from_bytes(endless, population="p", name="t", plan=b"plan")
    assert again == least.replace(deadline=math.inf)
    assert TaskSpec.from_bytes(again.to_bytes(), population="p", name="t", plan=b"plan") == again
    assert status_of(record_of(endless)).goal_count == 1


def test_an_eligibility_task_that_was_stored_earlier_is_read():
    data = {name: base64.b64decode(text) for name, text in STORED["eligibility_task"].items()}
    plan = ROUTER.SerializeToString()
    assert EligibilityTask.from_bytes(data["full"], plan=plan, checkpoint=b"x") == EligibilityTask(
        plan=plan,
        checkpoint=b"x",
        name="weights",
        arguments=b"\x00\xff",
        task_names=["train"],
        policies=[
            PolicyChoice("minimum_separation", {"current_index": 9}, ["train", "test"]),
            PolicyChoice("swor"),
        ],
        covers=["swor"],
    )
    policies = EligibilityTask.from_bytes(data["policies"], plan=b"", checkpoint=b"")
    assert policies == EligibilityTask(policies=[PolicyChoice("swor")])
    assert EligibilityTaskRecord("p", data["policies"], b"", b"", "g", 1.0).spec


# The structs.


def test_modes_have_the_numbers_of_the_protocol():
    numbers = PopulationEligibilitySpec.TaskInfo.TaskAssignmentMode
    for mode in AssignmentMode:
        number = numbers.Value(f"TASK_ASSIGNMENT_MODE_{mode.name}")
        assert mode.number == number
        assert AssignmentMode(number) is AssignmentMode(mode.value) is mode
    with pytest.raises(ValueError, match="0 is not a valid AssignmentMode"):
        AssignmentMode(0)


def test_lists_tuples_and_mappings_are_alike():
    options = {"fifo": {"x": 1}}
    read_only = MappingProxyType({"fifo": MappingProxyType({"x": 1})})
    given = TaskSpec("p", "n", b"", b"", 1, eligibility=["a"], options=options)
    same = TaskSpec("p", "n", b"", b"", 1, eligibility=("a",), options=read_only)
    assert given == same
    assert msgspec.json.encode(Submission.of(same)) == msgspec.json.encode(Submission.of(given))
    assert given.replace(goal_count=2) == TaskSpec(
        "p", "n", b"", b"", 2, **{"eligibility": ["a"], "options": options}
    )
    assert TaskSpec(**full(TaskSpec)).slim() == TaskSpec(
        **full(TaskSpec) | {"plan": b"", "checkpoint": b"", "slices": {}}
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"options": {"fifo": {"x": object()}}}, "options must be numbers"),
        ({"options": {"fifo": {"x": 2**80}}}, "options must be numbers"),
        ({"deadline": "5"}, "task specification: deadline: Expected"),
        ({"assignment_mode": 3}, "task specification: assignment_mode: 3 is not a valid"),
        ({"eligibility": [1]}, "task specification: eligibility: Expected `str`"),
    ],
)
def test_what_could_not_be_read_again_is_not_stored(fields, problem):
    with pytest.raises(StatusError, match=problem):
        TaskSpec("p", "n", b"", b"", 1, **fields).to_bytes()


def test_the_old_places_have_the_same_structs():
    assert tasks.TaskSpec is TaskSpec
    assert tasks.AssignmentMode is AssignmentMode
    assert eligibility.EligibilityTask is EligibilityTask
    assert eligibility.PolicyChoice is PolicyChoice
