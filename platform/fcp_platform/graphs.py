"""TensorFlow graphs of TFF's local computations: taken out, initialised from within, and run."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.mapreduce import compiler
from tensorflow_federated.python.core.environments.tensorflow_backend import (
    tensorflow_tree_transformations,
)
from tensorflow_federated.python.core.impl.compiler import transformations, tree_transformations

from fcp_core.client.tensorflow_sessions import SessionPool
from fcp_core.protocol.status import Code, StatusError
from fcp_platform.naming import Leaf, leaves, member_types, unplaced

#: What may be a part of a scope's name in TensorFlow.
_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]*")

#: The lines of an error's text that say where it was, not what it was.
_ACCOUNT = re.compile(r"Graph execution error|Detected at node|Node: |\[\[|File \"|\(?\d+\) ")

# The graphs are small and run a few times: rewriting one costs more than it saves.
_SESSION = tf.compat.v1.ConfigProto()
_SESSION.graph_options.rewrite_options.disable_meta_optimizer = True


@dataclass(frozen=True)
class Port:
    """A leaf of a graph's parameter or result and the tensor that carries it."""

    leaf: Leaf
    tensor_name: str


@dataclass(frozen=True)
class LocalGraph:
    """One local computation as a TensorFlow graph; running its outputs initialises it first.

    :param graph_def: the ``tf.compat.v1.GraphDef``.
    :param token: the name of the session token's placeholder; empty if there is none.
    """

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    token: str = ""

    def add_to_graph(self, inputs: Mapping[str, Any], name: str) -> list[Any]:
        """Import it into the current graph.

        :param inputs: the tensors to connect, by the names of the tensors they stand for.
        :param name: a prefix for the names of the nodes.
        :returns: one tensor for each output.
        """
        nodes = {node.name for node in self.graph_def.node}
        connected = {key: tensor for key, tensor in inputs.items() if _node_name(key) in nodes}
        outputs: list[Any] = tf.graph_util.import_graph_def(
            self.graph_def, connected, [port.tensor_name for port in self.outputs], name=name
        )
        return outputs

    def run(self, values: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Run it once, as if it had never run before.

        :param values: one array for each input, by the leaf's name.
        :returns: one array for each output, by the leaf's name; strings are objects (bytes).
        """
        (result,) = self.run_each([values])
        return result

    def run_each(
        self, series: Iterable[Mapping[str, Any]]
    ) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Run it for each of a series of values, in one session; see :meth:`run`."""
        ready = self._ready
        with ready.sessions.session(_SESSION) as session:
            for values in series:
                given = [values[port.leaf.name] for port in self.inputs]
                results = session.run(ready.outputs, dict(zip(ready.inputs, given, strict=True)))
                yield {
                    port.leaf.name: np.asarray(
                        result, dtype=object if isinstance(result, (bytes, str)) else None
                    )
                    for port, result in zip(self.outputs, results, strict=True)
                }

    @functools.cached_property
    def _ready(self) -> _Ready:
        with tf.Graph().as_default() as graph:
            inputs = [
                tf.compat.v1.placeholder(port.leaf.dtype, port.leaf.type.shape)
                for port in self.inputs
            ]
            names = [port.tensor_name for port in self.inputs]
            outputs = self.add_to_graph(dict(zip(names, inputs, strict=True)), "run")
        sessions = SessionPool(tf, graph)
        graph.finalize()
        return _Ready(sessions, inputs, outputs)


@dataclass(frozen=True)
class _Ready:
    """A graph that is imported, with its placeholders and outputs."""

    sessions: SessionPool
    inputs: list[Any]
    outputs: list[Any]


@contextlib.contextmanager
def in_words(what: str) -> Iterator[None]:
    """Say what went wrong in a graph, without TensorFlow's account of nodes and stacks.

    :param what: what the graph is for.
    :raises StatusError: in place of TensorFlow's errors, with their code.
    """
    try:
        yield
    except tf.errors.OpError as error:
        told = [line.strip() for line in error.message.splitlines()]
        said = [line for line in told if line and not _ACCOUNT.match(line)] or told
        raise StatusError(Code(error.error_code), f"{what} failed: {said[0]}") from error


def local_graph(
    block: Any, parameter_prefixes: Sequence[str], result_prefixes: Sequence[str] | str, config: Any
) -> LocalGraph:
    """Consolidate a building block without communication into one graph.

    :param block: a ``tff.framework.Lambda``.
    :param parameter_prefixes: a prefix of names for each element of the parameter; if there is one
        alone, it is for the parameter as a whole.
    :param result_prefixes: the same for the result; a string is for the result as a whole.
    :param config: the ``tf.compat.v1.ConfigProto`` with Grappler's settings.
    """
    parameter_type = block.type_signature.parameter
    if not _may_be_scopes(parameter_type):
        block, parameter_type = _without_names(block)
    compiled = compiler.consolidate_and_extract_local_processing(block, config)
    tensorflow = compiled.proto.tensorflow
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(tensorflow.graph_def.value)
    if tensorflow.initialize_op:
        _initialise_first(graph_def, tensorflow.initialize_op)
    inputs = tuple(_ports(parameter_type, tensorflow.parameter, parameter_prefixes))
    _do_not_wait_for(graph_def, {_node_name(port.tensor_name) for port in inputs})
    return LocalGraph(
        graph_def,
        inputs,
        tuple(_ports(compiled.type_signature.result, tensorflow.result, result_prefixes)),
        tensorflow.session_token_tensor_name,
    )


def _may_be_scopes(type_spec: Any) -> bool:
    """Whether TensorFlow can make scopes of the names in a parameter's type, as TFF has it do."""
    type_spec = unplaced(type_spec)
    return not isinstance(type_spec, tff.StructType) or all(
        _SCOPE.fullmatch(name or "") and _may_be_scopes(element)
        for name, element in member_types(type_spec)
    )


def _without_names(block: Any) -> tuple[Any, Any]:
    """Return a block whose parameter's elements have no names, and the type with the names."""
    block, _ = tensorflow_tree_transformations.replace_intrinsics_with_bodies(block)
    block, _ = tree_transformations.strip_placement(transformations.to_call_dominant(block))
    named = block.type_signature.parameter
    reference = tff.framework.Reference("nameless", _nameless(named))
    body = tff.framework.Call(block, _renamed(reference, named))
    return tff.framework.Lambda(reference.name, reference.type_signature, body), named


def _nameless(type_spec: Any) -> Any:
    if not isinstance(type_spec, tff.StructType):
        return type_spec
    return tff.StructType([_nameless(element) for _, element in member_types(type_spec)])


def _renamed(source: Any, type_spec: Any) -> Any:
    """Return a building block that gives the elements of another their names."""
    if not isinstance(type_spec, tff.StructType):
        return source
    return tff.framework.Struct(
        [
            (name, _renamed(tff.framework.Selection(source, index=index), element))
            for index, (name, element) in enumerate(member_types(type_spec))
        ]
    )


def _ports(type_spec: Any, binding: Any, prefixes: Sequence[str] | str) -> list[Port]:
    if type_spec is None:
        return []
    type_spec = unplaced(type_spec)
    if isinstance(prefixes, str):
        found = leaves(type_spec, prefixes)
    else:
        found = [
            leaf
            for prefix, (_, element) in zip(prefixes, member_types(type_spec), strict=True)
            for leaf in leaves(element, prefix)
        ]
    names = _bound_names(type_spec, binding)
    return [Port(leaf, name) for leaf, name in zip(found, names, strict=True)]


def _bound_names(type_spec: Any, binding: Any) -> list[str]:
    type_spec = unplaced(type_spec)
    if isinstance(type_spec, tff.StructType):
        return [
            name
            for (_, element), bound in zip(
                member_types(type_spec), binding.struct.element, strict=True
            )
            for name in _bound_names(element, bound)
        ]
    if binding.WhichOneof("binding") == "sequence":
        return [binding.sequence.variant_tensor_name]
    return [binding.tensor.tensor_name]


def _initialise_first(graph_def: Any, initialize_op: str) -> None:
    """Make every node that initialisation does not need wait for it.

    A device runs the targets of a plan and no initialiser.
    """
    initialize_op = _node_name(initialize_op)
    needed = ancestors(graph_def, [initialize_op])
    for node in graph_def.node:
        if node.name not in needed and node.op != "Placeholder":
            node.input.append(f"^{initialize_op}")


def _do_not_wait_for(graph_def: Any, names: Container[str]) -> None:
    """Take out the control edges that leave some nodes.

    Where the optimiser folds what reads a parameter to a constant, it keeps such an edge from the
    parameter's placeholder. There is nothing to wait for; and importing the graph puts another
    tensor in the placeholder's place, but leaves its control edges.
    """
    for node in graph_def.node:
        kept = [name for name in node.input if not (name[0] == "^" and name[1:] in names)]
        if len(kept) < len(node.input):
            del node.input[:]
            node.input.extend(kept)


def ancestors(graph_def: Any, names: Iterable[str]) -> set[str]:
    """Return the names of nodes and of all nodes that they need."""
    nodes = {node.name: node for node in graph_def.node}
    needed = set(names)
    pending = list(needed)
    while pending:
        for reference in nodes[pending.pop()].input:
            source = _node_name(reference)
            if source not in needed:
                needed.add(source)
                pending.append(source)
    return needed


def only(graph_def: Any, names: Container[str]) -> Any:
    """Return a graph with those of its nodes that have one of the names."""
    kept = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    kept.node.extend(node for node in graph_def.node if node.name in names)
    for node in kept.node:
        places = node.attr["_class"].list.s if "_class" in node.attr else []
        # A node may be bound to the place of one that is gone.
        if any(place.removeprefix(b"loc:@").decode() not in names for place in places):
            del node.attr["_class"]
    return kept


def _node_name(reference: str) -> str:
    """Return the name of the node in ``^node``, ``node:1`` or ``node``."""
    return reference.lstrip("^").split(":")[0]
