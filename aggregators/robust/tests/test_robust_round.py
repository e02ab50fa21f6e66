"""The plugin in a server: chosen by name, given its options, and asked about tasks."""

import concurrent.futures
import multiprocessing

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.engine import FoldJob
from fcp_core.aggregation.fold import fold, merge_partials, report_partial
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.rounds.tasks import TaskSpec
from fcp_robust import plugin

#: A model of two tensors, and a sum beside it that the plugin does not serve.
INTRINSICS = [
    *(
        Intrinsic(
            "federated_weighted_mean",
            (TensorSpec(f"v{i}", DataType.FLOAT, (2,)), TensorSpec("weight", DataType.FLOAT)),
            (TensorSpec(f"r{i}", DataType.FLOAT, (2,)),),
        )
        for i in range(2)
    ),
    Intrinsic(
        "federated_sum",
        (TensorSpec("count", DataType.INT64),),
        (TensorSpec("total", DataType.INT64),),
    ),
]
CONFIGURATION = configuration_to_proto(INTRINSICS).SerializeToString()


@pytest.fixture
def load(tmp_path):
    def load(**options):
        overrides = {key.replace("__", "."): value for key, value in options.items()}
        return Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides=overrides,
            extra=[plugin.RobustPlugin()],
        )

    return load


def task(goal=5, **more):
    return TaskSpec("phones", "train", plan=b"", aggregation=CONFIGURATION, goal_count=goal, **more)


def checkpoint(first, second):
    tensors = {"v0": np.float32(first), "v1": np.float32(second)}
    return write_checkpoint(
        {**tensors, "weight": np.float32(1), "count": np.array(1, np.int64)}, "tf_v1"
    )


def test_krum_sees_both_tensors_of_an_update(load):
    """Each hostile device is ordinary in one tensor and hostile in the other."""
    updates = [([1, 1], [1, 1]), ([1, 1.1], [1, 1]), ([1, 1], [1, 1.2])]
    updates += [([1, 1], [50, 50]), ([-40, 9], [1, 1])]
    plugins = load(aggregator="krum", aggregator__krum__byzantine=1)
    choices = plugins.for_task(task())
    job = FoldJob(CONFIGURATION, choices.aggregator_choices(), choices.aggregator_options())
    engine = plugins.make_engine()
    opened = engine.open(job)
    for number, update in enumerate(updates):
        opened.add(str(number), checkpoint(*update)).result()
    result = open_checkpoint(opened.report().result())
    together = np.concatenate([result.get_tensor("r0"), result.get_tensor("r1")])
    np.testing.assert_allclose(together, [1, 1, 1, 1], atol=0.3)
    assert result.get_tensor("total") == 5


@pytest.mark.slow
def test_partials_of_two_processes_merge(load):
    plugins = load(aggregator="geometric_median")
    choices = plugins.for_task(task())
    job = FoldJob(CONFIGURATION, choices.aggregator_choices(), choices.aggregator_options())
    updates = [(str(n), checkpoint([n, 0], [0, n])) for n in range(6)]
    factories = {name: plugins.aggregators[name] for name in ("geometric_median", "federated_sum")}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        halves = list(pool.map(fold, [factories] * 2, [job] * 2, [updates[:3], updates[3:]]))
    merged = merge_partials(factories, job, [partial for partial, _ in halves])
    whole, refused = fold(factories, job, updates)
    assert not refused
    assert report_partial(factories, job, merged) == report_partial(factories, job, whole)


def test_a_hostile_nan_is_refused_and_leaves_the_others(load):
    choices = load(aggregator="multi_krum").for_task(task())
    job = FoldJob(CONFIGURATION, choices.aggregator_choices(), choices.aggregator_options())
    _, refused = fold(
        choices.aggregators,
        job,
        [("good", checkpoint([1, 1], [1, 1])), ("bad", checkpoint([1, 1], [np.nan, 1]))],
    )
    assert {name: str(error.message) for name, error in refused.items()} == {
        "bad": "intrinsic 'federated_weighted_mean': 'v1' has a NaN or an infinity in it"
    }


def test_a_task_that_could_end_with_too_few_is_refused(load):
    configured = {
        "population:phones.aggregator": "krum",
        "population:phones.aggregator.krum.byzantine": 2,
    }
    plugins = load(**configured)
    assert plugins.check_task(task(goal=7)) == []
    assert plugins.check_task(task(goal=7, minimum_count=6)) == [
        "krum with byzantine = 2 needs 7 contributions; the task may end with 6."
    ]
    lower = task(goal=5, options={"krum": {"byzantine": 1}})
    (problem,) = plugins.check_task(lower)
    assert "byzantine of 'krum' is 2 here" in problem
    plugins = load(**configured, require_aggregators=False)
    assert plugins.check_task(lower) == []
    (problem,) = load().check_task(task(goal=4, aggregators={"federated_mean": "multi_krum"}))
    assert "multi_krum with byzantine = 1 needs 5" in problem


def test_a_fraction_that_leaves_nothing_stops_the_start(load):
    with pytest.raises(UsageError, match=r"aggregator.trimmed_mean.fraction: 0.5 is not below 0.5"):
        load(aggregator__trimmed_mean__fraction=0.5)
    with pytest.raises(UsageError, match=r"population:p.aggregator.trimmed_mean.fraction: 0.7"):
        load(**{"population:p.aggregator.trimmed_mean.fraction": 0.7})
