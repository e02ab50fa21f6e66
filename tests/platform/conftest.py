"""Runs lowered computations without a server: plans in stock TensorFlow, folds in the engine."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.fold import fold, merge_partials, report_partial
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import plan_pb2

#: What one client holds: examples by collection.
ClientData = Mapping[str, Sequence[bytes]]


@pytest.fixture(scope="session")
def run_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Runs a serialized ClientOnlyPlan as a device would: one session.run with its targets."""
    return functools.partial(_run_plan, tmp_path_factory.mktemp("plans"))


def _run_plan(folder: Path, plan_bytes: bytes, checkpoint: bytes, data: ClientData) -> bytes:
    import tensorflow as tf

    plan = plan_pb2.ClientOnlyPlan.FromString(plan_bytes)
    graph_def = tf.compat.v1.GraphDef.FromString(plan.graph)
    nodes = {node.name: node for node in graph_def.node}
    datasets = [node for node in graph_def.node if node.op == "ExternalDataset"]
    kept = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    kept.node.extend(node for node in graph_def.node if node.op != "ExternalDataset")
    with tf.Graph().as_default() as graph:
        variants = {}
        used = {name.split(":")[0] for node in kept.node for name in node.input}
        for node in datasets:
            token, selector = node.input
            assert nodes[token].op == "Placeholder"
            message = plan_pb2.ExampleSelector.FromString(
                tf.make_ndarray(nodes[selector].attr["value"].tensor).item()
            )
            examples = tf.constant(list(data[message.collection_uri]), tf.string)
            dataset = tf.data.Dataset.from_tensor_slices(examples)
            if node.name in used:
                variants[node.name] = tf.data.experimental.to_variant(dataset)
        tf.graph_util.import_graph_def(kept, variants, name="")
    router, spec = plan.phase.federated_compute, plan.phase.tensorflow_spec
    source, target = folder / "input", folder / "output"
    source.write_bytes(checkpoint)
    target.unlink(missing_ok=True)
    feeds = {router.output_filepath_tensor_name: str(target)}
    if router.input_filepath_tensor_name:
        feeds[router.input_filepath_tensor_name] = str(source)
    feeds[spec.dataset_token_tensor_name] = b"0123456789abcdef"
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(list(spec.target_node_names), feeds)
    return target.read_bytes()


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The installed plugins, with sums in the clear in place of secure ones."""
    secure = ("federated_secure_sum", "federated_secure_sum_bitwidth")
    return Plugins.load(
        environ={},
        config_file=None,
        overrides={f"aggregator.{name}.allow_unprotected": True for name in secure},
    )


@pytest.fixture(scope="session")
def run_round(run_plan: Callable[..., bytes], plugins: Plugins) -> Callable[..., Any]:
    """Runs one round of a computation: (computation, state, data of each client).

    Returns state and metrics as dictionaries of arrays by tensor name. The contributions are
    folded in two halves that are merged.
    """
    return functools.partial(_run_round, run_plan, plugins)


def _run_round(
    run_plan: Callable[..., bytes],
    plugins: Plugins,
    comp: Any,
    state: Any,
    clients: Sequence[Sequence[bytes] | ClientData],
    *,
    slices: Any = None,
) -> dict[str, Any]:
    from fcp_platform import computation, naming, plans, rounds, values

    federated = computation.FederatedComputation(comp, name="round")
    lowered = federated.lowered
    data = [port for port in lowered.client.inputs if port.leaf.is_sequence]
    selectors = [plan_pb2.ExampleSelector(collection_uri=port.leaf.name) for port in data]
    plan = plans.build_plan(lowered, selectors).SerializeToString()
    leaves = values.flatten(state, comp.type_signature.parameter[0], naming.STATE)
    prepared = rounds.prepare(lowered, {leaf.name: values.as_array(leaf, v) for leaf, v in leaves})
    contributions = []
    for number, client in enumerate(clients):
        held = client if isinstance(client, Mapping) else {data[0].leaf.name: client}
        contributions.append((str(number), run_plan(plan, prepared.checkpoint, held)))
    job = FoldJob(prepared.aggregation, options=_options(plugins))
    partials = []
    for half in (contributions[::2], contributions[1::2]):
        partial, refused = fold(plugins.aggregators, job, half)
        assert not refused
        partials.append(partial)
    merged = merge_partials(plugins.aggregators, job, partials)
    aggregate = report_partial(plugins.aggregators, job, merged)
    return dict(open_checkpoint(rounds.finish(lowered, prepared, aggregate)))


def _options(plugins: Plugins) -> dict[str, Any]:
    return {
        name: plugins.config.section(f"aggregator.{name}")
        for name in ("federated_secure_sum", "federated_secure_sum_bitwidth")
    }


@pytest.fixture
def port_of_its_own() -> int:
    """A port that was free a moment ago, for a process that is told its port."""
    with socket.create_server(("localhost", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
