"""Client graphs in stock TensorFlow: the custom operations are replaced while importing.

A plan's graph reads its examples through the operation ``ExternalDataset(token, selector)``, which
stock TensorFlow does not have. Such a node is left out, and what consumed it is connected to a
``tf.data`` dataset that is made here and asks Python for the examples. Token and selector stay
ordinary tensors of the graph, so one imported graph serves any number of runs at once: the token
tells whose examples are asked for. A selector may itself be computed by the graph; therefore the
graph is imported in stages, each up to the next node that has to be replaced.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from fcp_core.client.executors import FEDERATED_SELECT_URI
from fcp_core.client.graph_guard import GraphGuard
from fcp_core.client.tensorflow_sessions import SessionPool
from fcp_core.errors import MissingExtraError
from fcp_core.protocol.protos import federated_api_pb2, plan_pb2
from fcp_core.protocol.status import Code, StatusError

#: Examples cross into TensorFlow in lists: per element, the crossing costs more than the example.
_CHUNK_EXAMPLES = 256
_CHUNK_BYTES = 1 << 20
_MAX_GRAPHS = 16

#: Gives the examples of a serialized selector to the run that a token stands for.
ExampleSource = Callable[[bytes, bytes], Iterable[bytes]]


def import_tensorflow() -> Any:
    """Return TensorFlow.

    :raises MissingExtraError: if it is not installed.
    """
    try:
        # Its start-up remarks on GPUs and instruction sets are of no use to a device's owner.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import tensorflow
    except ImportError as error:
        raise MissingExtraError("a TensorFlow plan", "tff") from error
    return tensorflow


def selector_for_slices(served_at_id: bytes, keys: Iterable[int]) -> bytes:
    """Return the serialized selector of federated select's slices.

    What the operation ``MakeSlicesSelectorExampleSelector`` computes.
    """
    slices = plan_pb2.SlicesSelector(served_at_id=served_at_id.decode(), keys=list(keys))
    selector = plan_pb2.ExampleSelector(collection_uri=FEDERATED_SELECT_URI)
    selector.criteria.Pack(slices)
    return bytes(selector.SerializeToString(deterministic=True))


def eligibility_info(version: int, names: Sequence[bytes], weights: Sequence[float]) -> bytes:
    """Return the serialized ``TaskEligibilityInfo`` of tasks and their weights.

    What the operation ``CreateTaskEligibilityInfo`` computes.

    :raises ValueError: if there are not as many weights as names.
    """
    info = federated_api_pb2.TaskEligibilityInfo(version=version)
    for name, weight in zip(names, weights, strict=True):
        info.task_weights.add(task_name=name.decode(), weight=weight)
    return bytes(info.SerializeToString(deterministic=True))


class GraphCache:
    """Imported graphs by content, the least recently used dropped first. Thread-safe.

    :param source: gives the examples; called on TensorFlow's threads.
    :param guard: holds the graphs to what they may do.
    """

    def __init__(self, source: ExampleSource, guard: GraphGuard) -> None:
        self._source = source
        self._guard = guard
        self._lock = threading.Lock()
        self._graphs: OrderedDict[tuple[bytes, bool], SessionPool] = OrderedDict()

    def get(self, graph_bytes: bytes, *, rewritten: bool) -> SessionPool:
        """Return the sessions of a serialized GraphDef, importing it if it is new.

        :param rewritten: whether the functions that it calls may ask TensorFlow to optimise them.
        :raises StatusError: INVALID_ARGUMENT if the graph cannot be imported; PERMISSION_DENIED if
            it holds what it may not.
        """
        key = hashlib.sha256(graph_bytes).digest(), rewritten
        # Importing under the lock: whoever wants the same graph would only import it again.
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None:
                graph = _Importer(graph_bytes, self._source, self._guard, rewritten).load()
                self._graphs[key] = graph
                while len(self._graphs) > _MAX_GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
        return graph


@dataclass
class _Node:
    """A node of the graph with the names of those that it reads."""

    definition: Any
    inputs: tuple[str, ...]


class _Importer:
    """Imports one graph in stages."""

    def __init__(
        self, graph_bytes: bytes, source: ExampleSource, guard: GraphGuard, rewritten: bool
    ) -> None:
        self._tf = import_tensorflow()
        self._source = source
        try:
            self._def = self._tf.compat.v1.GraphDef.FromString(graph_bytes)
        except DecodeError as error:
            raise _bad(f"it is not a GraphDef: {error}") from error
        self._own = frozenset(node.name for node in self._def.node)
        guard.apply(self._tf, self._def)
        # Placement and colocation are the plan author's machine's, and colocation would name
        # nodes of other stages.
        for node in self._def.node:
            node.device = ""
            if "_class" in node.attr:
                del node.attr["_class"]
        if not rewritten:
            self._leave_functions()
        self._nodes = {
            node.name: _Node(node, tuple(_node_name(i) for i in node.input))
            for node in self._def.node
        }
        for name, node in self._nodes.items():
            for missing in set(node.inputs) - set(self._nodes):
                raise _bad(f"its node {name!r} reads {missing!r}, which there is not")
        self._imported: set[str] = set()
        self._outputs: dict[str, Any] = {}
        # What is added must not take the name of a node that is still to come.
        self._scope = "fcp_client"
        while any(name.startswith(self._scope) for name in self._nodes):
            self._scope += "_"

    def _leave_functions(self) -> None:
        """Have no function rewritten when it is called: a session's settings do not reach them."""
        nodes = [*self._def.node, *(n for f in self._def.library.function for n in f.node_def)]
        made: dict[bytes, bytes] = {}
        for node in nodes:
            if "config_proto" not in node.attr:
                continue
            value = node.attr["config_proto"].s
            if value not in made:
                try:
                    config = self._tf.compat.v1.ConfigProto.FromString(value)
                except DecodeError as error:
                    raise _bad(f"its node {node.name!r} has no ConfigProto: {error}") from error
                config.graph_options.rewrite_options.disable_meta_optimizer = True
                made[value] = config.SerializeToString(deterministic=True)
            node.attr["config_proto"].s = made[value]

    def load(self) -> SessionPool:
        """Return the sessions of the graph, which is finalized."""
        graph = self._tf.Graph()
        with graph.as_default():
            for name in self._replaceable():
                self._stage(self._ancestors(name), graph)
                node = self._nodes[name].definition
                inputs = [self._tensor(graph, i) for i in node.input if not i.startswith("^")]
                wanted, replace = _REPLACEMENTS[node.op]
                if len(inputs) != wanted:
                    raise _bad(f"{node.op} {name!r} has {len(inputs)} inputs instead of {wanted}")
                with graph.name_scope(self._scope):
                    output = replace(self._tf, self._source, *inputs)
                # The plan may name what is computed here as its output; a dataset it cannot.
                named = output.dtype == self._tf.string
                self._outputs[f"{name}:0"] = (
                    self._tf.identity(output, name=name) if named else output
                )
                self._imported.add(name)
            self._stage(set(self._nodes), graph)
        pool = SessionPool(self._tf, graph, self._own)
        graph.finalize()
        return pool

    def _replaceable(self) -> Iterator[str]:
        """Yield the nodes to replace, each after those that it depends on."""
        names = [n for n, node in self._nodes.items() if node.definition.op in _REPLACEMENTS]
        needs = {name: self._ancestors(name) & set(names) for name in names}
        done: set[str] = set()
        while names:
            ready = [name for name in names if needs[name] <= done]
            if not ready:
                raise _bad(f"the nodes {sorted(names)} depend on each other")
            for name in ready:
                names.remove(name)
                done.add(name)
                yield name

    def _ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        pending = list(self._nodes[name].inputs)
        while pending:
            current = pending.pop()
            if current not in found:
                found.add(current)
                pending.extend(self._nodes[current].inputs)
        return found

    def _stage(self, names: set[str], graph: Any) -> None:
        """Import the nodes of *names* that are still missing."""
        wanted = names - self._imported
        if not wanted:
            return
        stage = self._tf.compat.v1.GraphDef(versions=self._def.versions, library=self._def.library)
        outside: set[str] = set()
        for node in self._def.node:  # in the order of the file
            if node.name not in wanted:
                continue
            kept = stage.node.add()
            kept.CopyFrom(node)
            # A replaced node has no operation of its own to wait for: its consumers read it.
            inputs = [i for i in node.input if not (i.startswith("^") and self._replaced(i))]
            kept.input[:] = inputs
            outside.update(i for i in inputs if _node_name(i) not in wanted)
        input_map = {_canonical(i): self._tensor(graph, i) for i in sorted(outside)}
        try:
            self._tf.import_graph_def(stage, input_map=input_map, name="")
        except (ValueError, KeyError, self._tf.errors.OpError) as error:
            raise _bad(f"stock TensorFlow cannot import it: {error}") from error
        self._imported |= wanted

    def _replaced(self, input_name: str) -> bool:
        return f"{_node_name(input_name)}:0" in self._outputs

    def _tensor(self, graph: Any, input_name: str) -> Any:
        """Return what a node's input refers to in the graph that is being built."""
        if input_name.startswith("^"):
            # Only a tensor can stand for a control input, and not every operation has one.
            operation = graph.get_operation_by_name(input_name[1:])
            with graph.name_scope(self._scope), graph.control_dependencies([operation]):
                return self._tf.constant(0)
        name = _canonical(input_name)
        if name in self._outputs:
            return self._outputs[name]
        return graph.get_tensor_by_name(name)


def _dataset(tf: Any, source: ExampleSource, token: Any, selector: Any) -> Any:
    """Return the variant of a dataset of scalar strings, as ``ExternalDataset`` does."""

    def chunks(token: bytes, selector: bytes) -> Iterator[list[bytes]]:
        return _chunked(source(token, selector))

    lists = tf.data.Dataset.from_generator(
        chunks, args=(token, selector), output_signature=tf.TensorSpec((None,), tf.string)
    )
    # Optimising the pipeline costs each run more than a device's few examples could win back. A
    # plan whose own options say otherwise prevails.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return lists.unbatch().with_options(options)._variant_tensor


def _selector(tf: Any, source: ExampleSource, served_at_id: Any, keys: Any) -> Any:
    """Return what ``MakeSlicesSelectorExampleSelector`` does."""
    result = tf.numpy_function(
        lambda served_at_id, keys: selector_for_slices(served_at_id, keys.reshape(-1).tolist()),
        (served_at_id, keys),
        tf.string,
    )
    result.set_shape(())
    return result


def _eligibility(tf: Any, source: ExampleSource, version: Any, names: Any, weights: Any) -> Any:
    """Return what ``CreateTaskEligibilityInfo`` does."""
    result = tf.numpy_function(
        lambda version, names, weights: eligibility_info(
            int(version), names.reshape(-1).tolist(), weights.reshape(-1).tolist()
        ),
        (version, names, weights),
        tf.string,
    )
    result.set_shape(())
    return result


#: What stands for an operation that stock TensorFlow does not have, and how many inputs it takes.
_REPLACEMENTS: dict[str, tuple[int, Callable[..., Any]]] = {
    "ExternalDataset": (2, _dataset),
    "MakeSlicesSelectorExampleSelector": (2, _selector),
    "CreateTaskEligibilityInfo": (3, _eligibility),
}


def _chunked(examples: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for example in examples:
        chunk.append(example)
        size += len(example)
        if len(chunk) >= _CHUNK_EXAMPLES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _node_name(input_name: str) -> str:
    return input_name.lstrip("^").partition(":")[0]


def _canonical(input_name: str) -> str:
    if input_name.startswith("^") or ":" in input_name:
        return input_name
    return input_name + ":0"


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"the plan's graph: {problem}")
