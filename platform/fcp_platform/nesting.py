"""TFF's computations as messages, however deeply they nest.

TFF builds the message of a computation from those of its parts. It hands them to constructors,
which write a part and parse it again, and protobuf parses at most 100 levels: a program with
``tff.learning.ddp_secure_aggregator`` has more and could not even be traced. Here the same
messages are built by copying, which has no such limit. Protobuf's own limit stays as it is, for
all that this process parses.

Computations are traced where a program defines them, before it uses anything of this package, so
the way to build is changed as soon as TFF's building blocks and this package are both imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

BLOCKS = "tensorflow_federated.python.core.impl.compiler.building_blocks"


def install() -> None:
    """Have TFF's building blocks build by copying: now, or as soon as they are imported."""
    if BLOCKS in sys.modules:
        _change(sys.modules[BLOCKS])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _change(blocks: Any) -> None:
    for name, build in _BUILDERS.items():
        setattr(getattr(blocks, name), "_proto", build)  # noqa: B010 (it is another's attribute)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the building blocks once, in the ordinary way, and has them changed when loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != BLOCKS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_change(module: ModuleType) -> None:
                load(module)
                _change(module)

            spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


def _message(block: Any) -> Any:
    """Return a computation's message with its type alone."""
    proto = importlib.import_module("tensorflow_federated.proto.v0.computation_pb2")
    types = importlib.import_module(
        "tensorflow_federated.python.core.impl.types.type_serialization"
    )
    return proto.Computation(type=types.serialize_type(block.type_signature))


def _selection(block: Any) -> Any:
    message = _message(block)
    message.selection.source.CopyFrom(block.source.proto)
    message.selection.index = block.as_index()
    return message


def _struct(block: Any) -> Any:
    message = _message(block)
    message.struct.SetInParent()
    structure = importlib.import_module("tensorflow_federated.python.common_libs.structure")
    for name, value in structure.iter_elements(block):
        element = message.struct.element.add()
        if name is not None:
            element.name = name
        element.value.CopyFrom(value.proto)
    return message


def _call(block: Any) -> Any:
    message = _message(block)
    message.call.function.CopyFrom(block.function.proto)
    if block.argument is not None:
        message.call.argument.CopyFrom(block.argument.proto)
    return message


def _lambda(block: Any) -> Any:
    message = _message(block)
    function = getattr(message, "lambda")
    if block.parameter_name is not None:
        function.parameter_name = block.parameter_name
    function.result.CopyFrom(block.result.proto)
    return message


def _block(block: Any) -> Any:
    message = _message(block)
    for name, value in block.locals:
        message.block.local.add(name=name).value.CopyFrom(value.proto)
    message.block.result.CopyFrom(block.result.proto)
    return message


_BUILDERS = {
    "Selection": _selection,
    "Struct": _struct,
    "Call": _call,
    "Lambda": _lambda,
    "Block": _block,
}
