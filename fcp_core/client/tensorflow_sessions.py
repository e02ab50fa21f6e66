"""Sessions in which each run of a graph finds nothing of the one before.

A session costs little to make, but the first run in it does: TensorFlow optimises the graph and
instantiates its functions anew, which for small models takes longer than training. So a session is
used again where that cannot be told: if all the state that the graph can keep between runs is
that of variables, which are destroyed after each run. Any other graph gets a new session each time.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

#: Idle sessions that are kept for one graph; more only serve more devices at once.
_MAX_IDLE = 16

# Operations that TensorFlow calls stateful, but whose state is that of variables, of one run, or
# of the outside world.
_HARMLESS = re.compile(
    r"VarHandleOp|VarIsInitializedOp|VariableShape|(Read|Assign|AssignAdd|AssignSub)VariableOp"
    r"|Resource(Apply|SparseApply|Scatter)\w+|ResourceGather(Nd)?|ResourceStridedSliceAssign"
    r"|DestroyResourceOp|StatefulPartitionedCall|If|While|Case|Assert|CheckNumerics(V2)?|Print(V2)?"
    r"|PyFunc|Restore(V2|Slice)?|Save(V2|Slices)?|MergeV2Checkpoints|TensorArray\w*V3"
    r"|(Generator|Range|Reduce|Tensor|TensorSlice)Dataset"
)
# These draw from a stream that goes on between runs: only without a seed does nobody notice.
_RANDOM = re.compile(r"Random\w+|TruncatedNormal|Multinomial|ParameterizedTruncatedNormal")


class SessionPool:
    """The sessions of one graph. Thread-safe.

    :param tf: TensorFlow.
    :param graph: the ``tf.Graph``, not finalized yet.
    :param own: the names of the nodes that came with the plan; it feeds no others.
    """

    def __init__(self, tf: Any, graph: Any, own: frozenset[str] = frozenset()) -> None:
        self.graph = graph
        self.own = own
        self._tf = tf
        self._lock = threading.Lock()
        self._idle: list[tuple[bytes, Any]] = []
        self._reusable = _is_reusable(graph)
        self._resets: list[Any] = []
        if self._reusable:
            with graph.as_default(), graph.control_dependencies(None):
                self._resets = [
                    tf.raw_ops.DestroyResourceOp(
                        resource=operation.outputs[0], ignore_lookup_error=True
                    )
                    for operation in graph.get_operations()
                    if operation.type == "VarHandleOp"
                ]

    @contextlib.contextmanager
    def session(self, config: Any) -> Iterator[Any]:
        """Lend a session; one in which something was raised is not used again.

        :param config: the ``ConfigProto``.
        """
        key = config.SerializeToString(deterministic=True)
        session = self._take(key) or self._tf.compat.v1.Session(graph=self.graph, config=config)
        used = False
        try:
            yield session
            used = True
        finally:
            if not (used and self._give_back(key, session)):
                session.close()

    def _take(self, key: bytes) -> Any:
        with self._lock:
            for position, (config, session) in enumerate(self._idle):
                if config == key:
                    del self._idle[position]
                    return session
        return None

    def _give_back(self, key: bytes, session: Any) -> bool:
        if not self._reusable:
            return False
        try:
            session.run(self._resets)
        except (self._tf.errors.OpError, RuntimeError):
            return False  # an interruption closed it as its run ended
        with self._lock:
            if len(self._idle) >= _MAX_IDLE:
                return False
            self._idle.append((key, session))
        return True


def _is_reusable(graph: Any) -> bool:
    from tensorflow.python.framework import op_def_registry

    graph_def = graph.as_graph_def()
    functions = {function.signature.name for function in graph_def.library.function}
    inner = [node for function in graph_def.library.function for node in function.node_def]
    # The variables of a function body are out of reach of the resets.
    if any(node.op == "VarHandleOp" for node in inner):
        return False
    for node in [*graph_def.node, *inner]:
        if node.op in functions or _HARMLESS.fullmatch(node.op):
            continue
        definition = op_def_registry.get(node.op)
        if definition is None:
            return False
        if definition.is_stateful and not (
            _RANDOM.fullmatch(node.op) and not node.attr["seed"].i and not node.attr["seed2"].i
        ):
            return False
    return True
