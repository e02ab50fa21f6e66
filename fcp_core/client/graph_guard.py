"""What the graph of a server's plan may do on a device.

Only operations of a list may be in it, wherever a graph can keep them: among its nodes, in the
functions of its library, as the function that an attribute names. Values that can hide a graph
(variants and resources made of bytes) are refused. Of the operations that open files, those of the
list get a check of the name before them, made of ordinary operations: a name outside the folder of
the run is replaced by one that cannot exist.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError

#: What stands in place of a file name that is out of bounds; nothing can lie below it.
ELSEWHERE = b"/dev/null/only-the-folder-of-the-run-is-open-to-a-plan"
#: Which inputs of an operation name files.
_FILE_INPUTS = {
    "CacheDataset": (1,),
    "CacheDatasetV2": (1,),
    "MergeV2Checkpoints": (0, 1),
    "ReadFile": (0,),
    "Restore": (0,),
    "RestoreSlice": (0,),
    "RestoreV2": (0,),
    "Save": (0,),
    "SaveSlices": (0,),
    "SaveV2": (0,),
}
#: Without a file name, they keep what they have in memory.
_IN_MEMORY = ("CacheDataset", "CacheDatasetV2")
#: Operations that make tensors of bytes, with the attributes that say of which type.
_FROM_BYTES = {
    "DeserializeManySparse": ("dtype",),
    "DeserializeSparse": ("dtype",),
    "ParseTensor": ("out_type",),
    "Restore": ("dt",),
    "RestoreSlice": ("dt",),
    "RestoreV2": ("dtypes",),
}
_STREAMS = (b"", b"stderr", b"stdout", b"log(info)", b"log(warning)", b"log(error)")
_FILE = "[0-9A-Za-z_-][0-9A-Za-z_.-]*"


@functools.cache
def listed_operations() -> frozenset[str]:
    """Return the operations of the list that comes with the package."""
    text = importlib.resources.files(__package__).joinpath("allowed_operations.txt").read_text()
    names = (line.partition("#")[0].strip() for line in text.splitlines())
    return frozenset(name for name in names if name)


@dataclass(frozen=True)
class OperationRules:
    """Which operations a server's plans may use.

    :param also: beside those of the list; an operation that opens files is then not held to the
        folder of the run.
    :param everything: whether nothing is checked, for a server that is trusted with the account
        that the device runs under.
    :raises UsageError: if *also* names what is no operation.
    """

    also: frozenset[str] = field(default=frozenset())
    everything: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be a name."""
        for name in self.also:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_>]*", name):
                raise UsageError(f"{name!r} is not the name of a TensorFlow operation.")

    def allows(self, operation: str) -> bool:
        """Whether an operation may be in a graph."""
        return operation in self.also or operation in listed_operations()


class GraphGuard:
    """Holds graphs to the rules.

    :param folders: a regular expression for the folders of runs, as RE2 reads it.
    """

    def __init__(self, rules: OperationRules, folders: str) -> None:
        self._rules = rules
        self._inside = f"{folders}/{_FILE}"

    def apply(self, tf: Any, graph_def: Any) -> None:
        """Check a graph and hold its file operations to the folder of the run.

        :param tf: TensorFlow.
        :param graph_def: the ``GraphDef``, which is changed.
        :raises StatusError: PERMISSION_DENIED, with all that is against the rules.
        """
        if self._rules.everything:
            return
        problems = sorted(set(_Check(tf, graph_def, self._rules).problems()))
        if problems:
            raise StatusError(
                Code.PERMISSION_DENIED,
                f"the plan's graph is not allowed here: {', '.join(problems)}",
            )
        self._confine(tf, graph_def.node, "")
        for function in graph_def.library.function:
            taken = [argument.name for argument in function.signature.input_arg]
            self._confine(tf, function.node_def, ":{output}:0", taken)

    def _confine(self, tf: Any, nodes: Any, reference: str, taken: Iterable[str] = ()) -> None:
        """Put a check before each file name that a node is given."""
        prefix = "fcp_confine"
        names = [*taken, *(node.name for node in nodes)]
        while any(name.startswith(prefix) for name in names):
            prefix += "_"
        added: list[Any] = []
        for node in nodes:
            if node.op in self._rules.also:
                continue
            pattern = "" if node.op in _IN_MEMORY else self._inside
            for position in _FILE_INPUTS.get(node.op, ()):
                if position < len(node.input):
                    new = _confined(
                        tf, f"{prefix}_{len(added)}", node.input[position], pattern, reference
                    )
                    added.extend(new)
                    node.input[position] = new[-1].name + reference.format(output="output")
        nodes.extend(added)


def _confined(tf: Any, name: str, given: str, pattern: str, reference: str) -> list[Any]:
    """Return the nodes that compute a file name within bounds from the *given* one; it is last."""
    string = tf.string.as_datatype_enum
    elsewhere = tf.compat.v1.NodeDef(name=f"{name}_elsewhere", op="Const")
    elsewhere.attr["dtype"].type = string
    elsewhere.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(ELSEWHERE))
    # A variable could be written to between the check and the use; a copy is what was checked.
    copy = tf.compat.v1.NodeDef(name=f"{name}_copy", op="StringJoin", input=[given])
    copy.attr["N"].i, copy.attr["separator"].s = 1, b""
    inside = tf.compat.v1.NodeDef(name=f"{name}_inside", op="StaticRegexFullMatch")
    inside.attr["pattern"].s = pattern.encode()
    chosen = tf.compat.v1.NodeDef(name=f"{name}_chosen", op="SelectV2")
    chosen.attr["T"].type = string
    output = reference.format(output="output")
    inside.input.append(copy.name + output)
    chosen.input.extend(node.name + output for node in (inside, copy, elsewhere))
    return [elsewhere, copy, inside, chosen]


class _Check:
    """Finds what a graph has against the rules."""

    def __init__(self, tf: Any, graph_def: Any, rules: OperationRules) -> None:
        self._graph_def = graph_def
        self._rules = rules
        self._functions = {f.signature.name for f in graph_def.library.function}
        self._opaque = {
            kind
            for dtype in (tf.variant, tf.resource)
            for kind in (dtype.as_datatype_enum, dtype.as_datatype_enum + 100)  # references
        }

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, in words."""
        from tensorflow.python.framework import op_def_registry

        for name in self._functions:
            # Else it were not certain which of the two a node means.
            if op_def_registry.get(name) is not None:
                yield f"a function has the name of the operation {name}"
        yield from self._nodes(self._graph_def.node)
        for function in self._graph_def.library.function:
            yield from self._nodes(function.node_def)
            yield from self._attributes(function.attr.values())

    def _nodes(self, nodes: Any) -> Iterator[str]:
        for node in nodes:
            yield from self._named(node.op)
            yield from self._attributes(node.attr.values())
            for attribute in _FROM_BYTES.get(node.op, ()):
                value = node.attr.get(attribute)
                if value is not None and self._opaque & {value.type, *value.list.type}:
                    yield f"{node.op} makes variants or resources of bytes"
            stream = node.attr["output_stream"].s if "output_stream" in node.attr else b""
            if node.op == "PrintV2" and stream not in _STREAMS:
                yield "PrintV2 writes to a file"

    def _named(self, name: str) -> Iterator[str]:
        if name not in self._functions and not self._rules.allows(name):
            yield f"the operation {name}"

    def _attributes(self, values: Iterable[Any]) -> Iterator[str]:
        for value in values:
            kind = value.WhichOneof("value")
            functions = [value.func] if kind == "func" else value.list.func
            for function in functions:
                yield from self._named(function.name)
                yield from self._attributes(function.attr.values())
            tensors = [value.tensor] if kind == "tensor" else value.list.tensor
            for tensor in tensors:
                if tensor.dtype in self._opaque or tensor.variant_val or tensor.resource_handle_val:
                    yield "a constant holds variants or resources"
