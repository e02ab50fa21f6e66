"""Runs TensorFlow plans with stock TensorFlow, which is imported when the first one arrives."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fcp_core.client.executors import FEDERATED_SELECT_URI, PlanExecutor, PlanRun
from fcp_core.client.graph_guard import GraphGuard, OperationRules
from fcp_core.client.interruption import Interruption
from fcp_core.client.protocols import PlanResults
from fcp_core.client.tensorflow_graph import GraphCache, import_tensorflow
from fcp_core.client.tensorflow_sessions import SessionPool
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_core.protocol.status import Code, StatusError

_TOKEN_BYTES = 16


class TensorFlowExecutor(PlanExecutor):
    """Imports a plan's graph once; each run finds fresh variables.

    :param threads: how many threads an operation may use, unless the plan brings its own session
        configuration; few, so that many clients fit one machine.
    :param at_once: how many plans run at the same time, the others wait; None: as many as there
        are processors. More would only make each other slow, and need a session each.
    :param rules: which operations a plan may use; None: those of the list of the package.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        at_once: int | None = None,
        rules: OperationRules | None = None,
    ) -> None:
        self._threads = threads
        # Folders of runs are told from all others by a name that no plan can know before it runs.
        self._home = tempfile.gettempdir()
        self._prefix = f"fcp-plan-{secrets.token_hex(8)}-"
        folders = re.escape(os.path.join(self._home, self._prefix)) + "[0-9A-Za-z_]+"
        guard = GraphGuard(rules or OperationRules(), folders)
        self._gate = _Gate(at_once or os.cpu_count() or 1)
        self._lock = threading.Lock()
        self._active: dict[bytes, _ActiveRun] = {}
        self._graphs = GraphCache(self._examples, guard)

    def run(self, run: PlanRun) -> bytes | PlanResults:
        """Run the plan's target nodes in one call and return the checkpoint that they wrote.

        Tensors that the plan's router gives to secure aggregation come beside it.
        """
        plan = run.plan
        io = _Routing.of(plan)
        with self._scratch() as scratch:
            output = Path(scratch, "output.ckpt")
            feeds = {io.output_filepath: str(output)} if io.output_filepath else {}
            values = self._run(run, Path(scratch), io.input_filepath, feeds, io.secure)
            if not output.exists() and io.output_filepath:
                targets = list(plan.phase.tensorflow_spec.target_node_names)
                raise StatusError(Code.INTERNAL, f"the plan's targets {targets} wrote no file")
            checkpoint = output.read_bytes() if io.output_filepath else b""
            secure = dict(zip(io.secure, values, strict=True))
            return PlanResults(checkpoint, secure) if secure else checkpoint

    def weigh(self, run: PlanRun) -> bytes:
        """Run an eligibility plan and return what its router names: a ``TaskEligibilityInfo``.

        :raises StatusError: as :meth:`run` does.
        """
        router = run.plan.phase.federated_compute_eligibility
        name = _full_name(router.task_eligibility_info_tensor_name)
        if not name:
            raise _bad("its router names no task_eligibility_info tensor")
        with self._scratch() as scratch:
            input_filepath = _full_name(router.input_filepath_tensor_name)
            (value,) = self._run(run, Path(scratch), input_filepath, {}, [name])
        if not isinstance(value, bytes):
            raise _bad(f"{name} is no scalar string")
        return value

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix=self._prefix, dir=self._home)

    def _run(
        self,
        run: PlanRun,
        scratch: Path,
        input_filepath: str,
        given: dict[str, str],
        wanted: Sequence[str],
    ) -> list[Any]:
        """Run the plan's target nodes, and return the tensors of these names."""
        plan = run.plan
        if not plan.graph:
            has = "only a TFLite graph" if plan.tflite_graph else "no graph"
            raise StatusError(Code.UNIMPLEMENTED, f"the plan has {has}; a GraphDef is needed")
        tf = import_tensorflow()
        own_config = bool(plan.tensorflow_config_proto.value)
        sessions = self._graphs.get(plan.graph, rewritten=own_config)
        spec = plan.phase.tensorflow_spec
        feeds: dict[str, Any] = {**_constants(tf, spec.constant_inputs), **given}
        if input_filepath:
            checkpoint = scratch / "input.ckpt"
            checkpoint.write_bytes(run.checkpoint)
            feeds[input_filepath] = str(checkpoint)
        token = secrets.token_bytes(_TOKEN_BYTES)
        if spec.dataset_token_tensor_name:
            feeds[_full_name(spec.dataset_token_tensor_name)] = token
        active = _ActiveRun(run, scratch)
        with self._lock:
            self._active[token] = active
        try:
            targets = [*spec.target_node_names, *map(_full_name, wanted)]
            values = self._execute(tf, sessions, targets, feeds, active)
            return list(values[len(targets) - len(wanted) :])
        finally:
            with self._lock:
                del self._active[token]

    def _execute(
        self,
        tf: Any,
        sessions: SessionPool,
        targets: Sequence[str],
        feeds: dict[str, Any],
        active: _ActiveRun,
    ) -> Any:
        run, graph = active.run, sessions.graph
        try:
            fetches = [graph.as_graph_element(name) for name in targets]
            feed_dict = {graph.get_tensor_by_name(name): value for name, value in feeds.items()}
        except (KeyError, ValueError) as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"TensorFlow plan: {error}") from error
        for name in feeds:
            if name.partition(":")[0] not in sessions.own:
                raise _bad(f"it feeds {name}, which is none of its own nodes")
        try:
            with (
                self._gate.passage(run.interruption),
                sessions.session(self._config(tf, run.plan)) as session,
                run.interruption.unblocking(session.close),
            ):
                return session.run(fetches, feed_dict=feed_dict)
        except (tf.errors.OpError, RuntimeError) as error:
            run.interruption.check()
            if active.failure is not None:
                raise active.failure from error
            raise StatusError(_code(error), f"the plan failed: {error}") from error

    def _config(self, tf: Any, plan: plan_pb2.ClientOnlyPlan) -> Any:
        if plan.tensorflow_config_proto.value:
            return _within_bounds(tf, plan.tensorflow_config_proto.value)
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=self._threads,
            # A dataset's functions run beside the operation that reads it.
            inter_op_parallelism_threads=max(2, self._threads),
            device_count={"GPU": 0},
        )
        # Functions of datasets are rewritten for every run, which costs more than it saves.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        return config

    def _examples(self, token: bytes, selector_bytes: bytes) -> Iterable[bytes]:
        with self._lock:
            active = self._active.get(token)
        if active is None:
            raise StatusError(Code.INVALID_ARGUMENT, "a dataset was read with an unknown token")
        return active.elements(selector_bytes)


class _Gate:
    """Lets so many runs through at the same time."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def passage(self, interruption: Interruption) -> Iterator[None]:
        """Wait for a place, and have it inside.

        :raises StatusError: CANCELLED if the client is interrupted before.
        """
        with interruption.unblocking(self._wake), self._changed:
            self._changed.wait_for(lambda: self._room > 0 or interruption.requested)
            interruption.check()
            self._room -= 1
        try:
            yield
        finally:
            with self._changed:
                self._room += 1
                self._changed.notify_all()  # one that is woken may have been interrupted

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


@dataclass
class _ActiveRun:
    """A run in progress: where its datasets get their elements, and what went wrong there."""

    run: PlanRun
    scratch: Path
    failure: BaseException | None = None

    def elements(self, selector_bytes: bytes) -> Iterable[bytes]:
        """Return what a dataset yields."""
        try:
            selector = plan_pb2.ExampleSelector.FromString(selector_bytes)
        except DecodeError as error:
            self.failure = _bad(f"an example selector is malformed: {error}")
            raise self.failure from error
        if selector.collection_uri == FEDERATED_SELECT_URI:
            return self._slice_files(selector)
        return self._examples(selector)

    def _examples(self, selector: plan_pb2.ExampleSelector) -> Iterator[bytes]:
        """Yield the store's examples."""
        try:
            for example in self.run.store.examples(selector):
                self.run.interruption.check()
                yield example
        except Exception as error:
            # TensorFlow would pass on the text alone.
            self.failure = error
            raise

    def _slice_files(self, selector: plan_pb2.ExampleSelector) -> Iterator[bytes]:
        """Yield the names of files with one slice each.

        They stay until the run ends: TensorFlow prefetches, so that the next name is asked for
        before the file of this one is read.
        """
        try:
            slices = plan_pb2.SlicesSelector.FromString(selector.criteria.value)
            for content in self.run.slices.slices(slices):
                handle, name = tempfile.mkstemp(dir=self.scratch, suffix=".slice")
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                yield os.fsencode(name)
        except Exception as error:
            self.failure = error
            raise


@dataclass(frozen=True)
class _Routing:
    """The names that the plan's router gives to what is fed, and to what is to be masked."""

    input_filepath: str
    output_filepath: str
    secure: tuple[str, ...]

    @classmethod
    def of(cls, plan: plan_pb2.ClientOnlyPlan) -> _Routing:
        """Check a plan's inputs and outputs as the reference client does.

        :raises StatusError: INVALID_ARGUMENT if they do not fit.
        """
        phase = plan.phase
        if phase.WhichOneof("io_router") != "federated_compute":
            raise _bad("it has no federated_compute router")
        router, spec = phase.federated_compute, phase.tensorflow_spec
        given = _full_name(router.input_filepath_tensor_name)
        written = _full_name(router.output_filepath_tensor_name)
        fed = {name for name in (given, written) if name}
        declared = [_tensor_name(data) for data in spec.input_tensor_specs]
        if len(declared) != len(fed) or set(declared) != fed:
            raise _bad(f"it declares the inputs {sorted(declared)}, but is fed {sorted(fed)}")
        outputs = {_tensor_name(data) for data in spec.output_tensor_specs}
        aggregated = {_full_name(name) for name in router.aggregations}
        secure = {
            _full_name(name)
            for name, config in router.aggregations.items()
            if config.WhichOneof("protocol_config") == "secure_aggregation"
        }
        if len(outputs) != len(spec.output_tensor_specs) or outputs != aggregated:
            raise _bad(
                f"it declares the outputs {sorted(outputs)}, but aggregates {sorted(aggregated)}"
            )
        if outputs != secure:
            raise _bad(f"its outputs {sorted(outputs - secure)} are not securely aggregated")
        if not written and not secure:
            raise _bad("it writes no checkpoint: its router names no output_filepath")
        # Their names are those of the vectors, to the letter.
        return cls(given, written, tuple(sorted(router.aggregations)))


def _tensor_name(data: bytes) -> str:
    try:
        return _full_name(tensorflow_struct_pb2.TensorSpecProto.FromString(data).name)
    except DecodeError as error:
        raise _bad(f"a tensor specification is malformed: {error}") from error


def _full_name(name: str) -> str:
    """Return a tensor's name with its output; plans may leave out the first one's ``:0``."""
    return name if ":" in name or not name else f"{name}:0"


def _constants(tf: Any, constants: Any) -> dict[str, Any]:
    feeds = {}
    for name, data in constants.items():
        holder = tf.compat.v1.AttrValue()  # a TensorProto has no public name of its own
        try:
            holder.tensor.ParseFromString(data)
            value = tf.make_ndarray(holder.tensor)
        except (DecodeError, TypeError, ValueError) as error:
            raise _bad(f"the constant input {name!r} is not a tensor: {error}") from error
        feeds[_full_name(name)] = value
    return feeds


def _within_bounds(tf: Any, data: bytes) -> Any:
    """Return a plan's session configuration without what concerns other machines or the process."""
    try:
        given = tf.compat.v1.ConfigProto.FromString(data)
    except DecodeError as error:
        raise _bad(f"its session configuration is malformed: {error}") from error
    threads = os.cpu_count() or 1
    config = tf.compat.v1.ConfigProto(
        # 0 means as many as there are processors.
        intra_op_parallelism_threads=max(0, min(given.intra_op_parallelism_threads, threads)),
        inter_op_parallelism_threads=max(0, min(given.inter_op_parallelism_threads, 2 * threads)),
        device_count={name: max(0, min(n, 1)) for name, n in given.device_count.items()},
        allow_soft_placement=given.allow_soft_placement,
    )
    options, kept = given.graph_options, config.graph_options
    kept.optimizer_options.CopyFrom(options.optimizer_options)
    kept.rewrite_options.CopyFrom(options.rewrite_options)
    kept.rewrite_options.ClearField("custom_optimizers")
    return config


def _code(error: Exception) -> Code:
    try:
        return Code(getattr(error, "error_code", Code.INTERNAL))
    except ValueError:
        return Code.UNKNOWN


def _bad(problem: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, f"TensorFlow plan: {problem}")
