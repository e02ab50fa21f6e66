"""Our descriptors against a table of the protocol's messages, field by field."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fcp_core.protocol.protos
from fcp_core.protocol import generate
from fcp_core.protocol.protos import google_api_annotations_pb2, google_longrunning_operations_pb2
from fcp_core.protocol.wkt import FileDescriptorProto

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "tests/data/messages.json").read_text())

# The HTTP annotations themselves are not the protocol's messages; the last ones are our own.
NOT_IN_TABLE = {"google.api", "fcp.server"}


def ours() -> list[Any]:
    """Return the FileDescriptorProto of each of our files that the table speaks of."""
    modules = [
        importlib.import_module(f"fcp_core.protocol.protos.{info.name}")
        for info in pkgutil.iter_modules(fcp_core.protocol.protos.__path__)
    ]
    files = [FileDescriptorProto.FromString(m.DESCRIPTOR.serialized_pb) for m in modules]
    return [file for file in files if file.package not in NOT_IN_TABLE]


def field_entry(field: Any, message: Any, syntax: str) -> dict[str, Any]:
    """Describe a field as the table does."""
    kinds = type(field)
    entry: dict[str, Any] = {"name": field.name, "number": field.number}
    entry["type"] = kinds.Type.Name(field.type).removeprefix("TYPE_").lower()
    repeated = field.label == kinds.LABEL_REPEATED
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    map_entry = entries.get(field.type_name.rpartition(".")[2]) if repeated else None
    if map_entry is not None:
        key, value = (field_entry(part, map_entry, syntax) for part in map_entry.field)
        entry["type"] = "map"
        entry["map"] = {
            "key": key["type"],
            "value": value.get("type_name", value["type"]),
            "value_kind": value["type"],
        }
        entry["label"] = "map"
    else:
        if field.type_name:
            entry["type_name"] = field.type_name.lstrip(".")
        entry["label"] = (
            "repeated" if repeated else "optional" if field.proto3_optional else "singular"
        )
        if repeated and entry["type"] not in ("message", "string", "bytes"):
            packed = field.options.packed if field.options.HasField("packed") else True
            entry["packed"] = packed and syntax == "proto3"
    if field.HasField("oneof_index") and not field.proto3_optional:
        entry["oneof"] = message.oneof_decl[field.oneof_index].name
    for option in ("deprecated", "lazy"):
        if getattr(field.options, option):
            entry[option] = True
    return entry


def messages(scope: str, found: Any, syntax: str) -> Iterator[dict[str, Any]]:
    """Describe the messages and, below them, the nested ones."""
    for message in found:
        if message.options.map_entry:
            continue
        name = f"{scope}.{message.name}"
        entry = {
            "name": name,
            "fields": [field_entry(field, message, syntax) for field in message.field],
        }
        if message.reserved_range:
            entry["reserved"] = [[r.start, r.end - 1] for r in message.reserved_range]
        assert not message.reserved_name, name
        yield entry
        yield from messages(name, message.nested_type, syntax)


def enums(scope: str, parent: Any) -> Iterator[dict[str, Any]]:
    """Describe the enums, nested ones included."""
    for enum in parent.enum_type:
        values = []
        for value in enum.value:
            entry: dict[str, Any] = {"name": value.name, "number": value.number}
            if value.options.deprecated:
                entry["deprecated"] = True
            values.append(entry)
        yield {"name": f"{scope}.{enum.name}", "values": values}
    for message in getattr(parent, "message_type", None) or getattr(parent, "nested_type", ()):
        yield from enums(f"{scope}.{message.name}", message)


def methods(service: Any, package: str) -> Iterator[dict[str, Any]]:
    """Describe the calls of a service."""
    for method in service.method:
        entry: dict[str, Any] = {
            "name": method.name,
            "input": method.input_type.lstrip("."),
            "output": method.output_type.lstrip("."),
        }
        rule = method.options.Extensions[google_api_annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        if verb:
            entry["http"] = {
                "verb": verb.upper(),
                "path": getattr(rule, verb),
                "body": rule.body or None,
            }
        info = method.options.Extensions[google_longrunning_operations_pb2.operation_info]
        if info.response_type:
            entry["long_running"] = {
                "response_type": f"{package}.{info.response_type}",
                "metadata_type": f"{package}.{info.metadata_type}",
            }
        for streaming in ("client_streaming", "server_streaming"):
            if getattr(method, streaming):
                entry[streaming] = True
        yield entry


def describe(file: Any) -> dict[str, Any]:
    """Describe one of our files as the table does."""
    return {
        "package": file.package,
        "syntax": file.syntax,
        "messages": list(messages(file.package, file.message_type, file.syntax)),
        "enums": list(enums(file.package, file)),
        "services": [
            {
                "name": f"{file.package}.{service.name}",
                "methods": list(methods(service, file.package)),
            }
            for service in file.service
        ],
    }


def flatten(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Give each thing that the wire depends on a line of its own."""
    lines: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        assert key not in lines, f"{key} is declared twice"
        lines[key] = value

    for file in files:
        for message in file.get("messages", ()):
            name = message["name"]
            put(f"message {name}", (file["package"], file["syntax"]))
            put(f"message {name} reserves", sorted(message.get("reserved", [])))
            for field in message["fields"]:
                put(f"field {name}.{field['name']}", field)
        for enum in file.get("enums", ()):
            put(f"enum {enum['name']}", file["package"])
            for value in enum["values"]:
                put(f"value {enum['name']}.{value['name']}", value)
        for service in file.get("services", ()):
            put(f"service {service['name']}", file["package"])
            for method in service["methods"]:
                put(f"method {service['name']}.{method['name']}", method)
    return lines


WANTED = flatten(TABLE)
GOT = flatten([describe(file) for file in ours()])


def test_the_table_was_read() -> None:
    assert len(WANTED) > 1000
    kinds = {key.split()[0] for key in WANTED}
    assert kinds == {"message", "field", "enum", "value", "service", "method"}


def test_nothing_of_the_table_is_missing() -> None:
    assert sorted(WANTED.keys() - GOT.keys()) == []


def test_nothing_is_beside_the_table() -> None:
    assert sorted(GOT.keys() - WANTED.keys()) == []


def test_every_line_is_the_same() -> None:
    different = {
        key: (GOT[key], wanted)
        for key, wanted in WANTED.items()
        if key in GOT and GOT[key] != wanted
    }
    assert different == {}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda file: file.message_type[0].field[0].ClearField("number"), "field"),
        (lambda file: file.message_type[0].field.pop(), "field"),
        (lambda file: setattr(file.message_type[0], "name", "Other"), "message"),
        (lambda file: setattr(file.service[0].method[0], "client_streaming", True), "method"),
    ],
)
def test_the_comparison_sees_a_change(change: Any, key: str) -> None:
    (file,) = (f for f in ours() if f.name.endswith("/task_assignments.proto"))
    before = flatten([describe(file)])
    change(file)
    after = flatten([describe(file)])
    different = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    assert any(k.startswith(key) for k in different)


def test_the_generated_modules_are_what_the_proto_files_give(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    # In a process of its own, as "make protos" runs it: with TensorFlow's packages loaded, protobuf
    # knows the options' extensions and writes them in another order.
    command = [sys.executable, "-m", "fcp_core.protocol.generate"]
    done = subprocess.run(
        [*command, "--root", str(ROOT), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    written = [Path(line) for line in done.stdout.splitlines()]
    folder = ROOT / generate.PACKAGE
    committed = {p.name for pattern in ("*_pb2.py", "*_pb2.pyi") for p in folder.glob(pattern)}
    assert {path.name for path in written} == committed
    for path in written:
        assert path.read_text() == (folder / path.name).read_text(), path.name


@pytest.mark.tff
@pytest.mark.slow
@pytest.mark.parametrize("tensorflow_first", [True, False])
def test_the_messages_load_beside_tensorflow(tensorflow_first: bool) -> None:
    pytest.importorskip("tensorflow")
    order = ["tensorflow", "fcp_core.protocol.routes"]
    first, second = order if tensorflow_first else reversed(order)
    script = f"""
import {first}
import {second}
import importlib, pkgutil
import fcp_core.protocol.protos as protos
for info in pkgutil.iter_modules(protos.__path__):
    importlib.import_module(f"fcp_core.protocol.protos.{{info.name}}")
from fcp_core.protocol.protos import plan_pb2, tensorflow_types_pb2
from tensorflow.core.framework import types_pb2
assert tensorflow_types_pb2.DT_UINT64 == types_pb2.DT_UINT64
assert plan_pb2.Plan.FromString(plan_pb2.Plan(version=1).SerializeToString()).version == 1
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_protocol_room_imports_nothing_heavy() -> None:
    script = """
import importlib, pkgutil, sys
import fcp_core.protocol
for info in pkgutil.walk_packages(fcp_core.protocol.__path__, "fcp_core.protocol."):
    importlib.import_module(info.name)
heavy = {"tornado", "asyncio", "tensorflow", "sqlite3", "grpc_tools", "urllib3"}
print(sorted(heavy & set(sys.modules)))
rooms = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("fcp_core.")}
print(sorted(rooms))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == ["[]", "['fcp_core.moved', 'fcp_core.protocol']"]
