"""An eligibility task of a population, as devices meet it, and real devices that run it."""

import asyncio
import gzip
import importlib.util

import pytest

from fcp_core.client import CallableStore, Client, Outcome
from fcp_core.client.builtin_executors import default_executors
from fcp_core.client.eligibility import EligibilityDecider
from fcp_core.client.eligibility_plan import CONTEXT_URI, POLICIES_URI, EligibilityPlan
from fcp_core.client.executors import PlanExecutor
from fcp_core.client.interruption import Interruption
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import (
    federated_api_pb2,
    plan_pb2,
    population_eligibility_spec_pb2,
    task_eligibility_context_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread


def plan(**router):
    message = plan_pb2.ClientOnlyPlan()
    message.phase.tensorflow_spec.SetInParent()
    names = {"input_filepath_tensor_name": "in:0", "task_eligibility_info_tensor_name": "out:0"}
    for name, value in {**names, **router}.items():
        setattr(message.phase.federated_compute_eligibility, name, value)
    return message


PLAN = plan().SerializeToString()


def test_the_plan_reaches_devices_and_their_weights_are_honoured(kit):
    async def main():
        async with kit.world() as world:
            task = EligibilityTask(PLAN, b"data", arguments=b"args", task_names=["train"])
            await world.services.eligibility_tasks.set(kit.population, task)
            await world.submit(goal=1, name="train")
            device = world.device()
            response = await device.check_in()
            given = response.eligibility_eval_task
            assert await fetched(world, given.plan) == PLAN
            assert await fetched(world, given.init_checkpoint) == b"data"
            assert given.plan.client_cache_id
            (policy,) = device.spec(response).eligibility_policies
            assert policy.tf_custom_policy.arguments == b"args"
            # Without weights, or with zero, there is nothing for it.
            assert device.answer(await device.start()).HasField("rejection_info")
            zero = await world.device().assignment({"train": 0.0})
            assert zero is None
            assert (await world.device().assignment({"train": 0.3})).task_name == "train"

    asyncio.run(main())


async def fetched(world, resource):
    """Fetch a resource that has an address, as a device does."""
    assert resource.uri.startswith("https://fcp.example/data/")
    download = await world.services.media.download(resource.uri.partition("/data/")[2])
    return gzip.decompress(download.data)


def test_only_the_tasks_it_decides_about_are_withheld_from_plain_devices(kit):
    async def main():
        async with kit.world() as world:
            tasks = world.services.eligibility_tasks
            swor = PolicyChoice("sampling_without_replacement", task_names=["train"])
            await tasks.set(kit.population, EligibilityTask(policies=[swor]))
            await world.submit(goal=1, name="train")
            await world.submit(goal=2, name="count")
            plain = world.device(native=False)
            assert (await plain.assignment({"train": 1.0, "count": 1.0})).task_name == "count"
            await tasks.remove(kit.population)
            assert (await world.device(native=False).assignment()).task_name == "train"
            with pytest.raises(StatusError, match="has no eligibility task"):
                await tasks.remove(kit.population)
            unknown = EligibilityTask(PLAN, b"data")
            with pytest.raises(StatusError, match="no population"):
                await tasks.set("elsewhere", unknown)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "checkpoint", "message"),
    [
        (b"\xff", b"x", "not a ClientOnlyPlan"),
        (
            plan_pb2.ClientOnlyPlan(graph=b"g").SerializeToString(),
            b"x",
            "must be federated_compute_eligibility, not None",
        ),
        (PLAN, b"", "must not be empty"),
    ],
)
def test_a_plan_that_devices_would_not_run_is_refused(data, checkpoint, message):
    with pytest.raises(StatusError, match=message) as caught:
        EligibilityTask(data, checkpoint)
    assert caught.value.code is Code.INVALID_ARGUMENT


class Weigher(PlanExecutor):
    """Weighs without TensorFlow, and remembers what it was shown."""

    def __init__(self, weights) -> None:
        self.weights = weights
        self.shown = {}

    def run(self, run):
        raise AssertionError("an eligibility plan is weighed, not run")

    def weigh(self, run):
        for uri in (CONTEXT_URI, POLICIES_URI, "app:/data"):
            selector = plan_pb2.ExampleSelector(collection_uri=uri)
            self.shown[uri] = list(run.store.examples(selector))
        info = federated_api_pb2.TaskEligibilityInfo(version=1)
        for name, weight in self.weights.items():
            info.task_weights.add(task_name=name, weight=weight)
        return info.SerializeToString()


def spec_of(tasks, policies):
    spec = population_eligibility_spec_pb2.PopulationEligibilitySpec()
    for policy in policies:
        spec.eligibility_policies.add().CopyFrom(policy)
    for name, indices in tasks.items():
        spec.task_info.add(
            task_name=name, task_assignment_mode=1, eligibility_policy_indices=indices
        )
    return spec


def policy(name, kind="tf_custom_policy", **fields):
    spec = population_eligibility_spec_pb2.EligibilityPolicyEvalSpec(name=name, min_version=1)
    getattr(spec, kind).SetInParent()
    for field, value in fields.items():
        setattr(getattr(spec, kind), field, value)
    return spec


def decide(spec, weights, store=None):
    store = store or CallableStore(lambda selector: [b"example"])
    weigher = Weigher(weights)
    eligibility_plan = EligibilityPlan(
        PLAN, b"", {"tensorflow_spec": weigher}, store, None, Interruption()
    )
    decider = EligibilityDecider("p", store, None, lambda: 0.0, eligibility_plan)
    return decider.decide(spec).weights, weigher


def test_the_plan_sees_the_tasks_and_policies_that_are_its_own():
    many = policy("data", "data_availability_policy", min_example_count=1)
    few = policy("much", "data_availability_policy", min_example_count=5)
    custom = policy("mine", arguments=b"17")
    spec = spec_of({"a": [0], "b": [2], "c": [1, 2], "d": [2], "e": [0, 2]}, [many, few, custom])
    weights, weigher = decide(spec, {"b": 0.25, "c": 1.0, "e": 2.0, "a": 0.0})
    # "a" is none of its tasks; "c" has too few examples; it does not know of "d".
    assert weights == {"a": 1.0, "b": 0.25, "c": 0.0, "d": 0.0, "e": 2.0}
    (data,) = weigher.shown[CONTEXT_URI]
    context = task_eligibility_context_pb2.TaskEligibilityContext.FromString(data)
    assert {t.task_name: [p.name for p in t.policies] for t in context.tasks} == {
        name: ["mine"] for name in "bcde"
    }
    assert weigher.shown[POLICIES_URI] == [custom.SerializeToString()]
    assert weigher.shown["app:/data"] == [b"example"]


def test_without_a_plan_custom_policies_are_not_passed():
    store = CallableStore(lambda selector: [])
    decider = EligibilityDecider("p", store, None, lambda: 0.0)
    spec = spec_of({"a": [0], "b": []}, [policy("mine")])
    assert decider.decide(spec).weights == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize(
    ("data", "executors", "code"),
    [
        (b"\xff", {}, Code.INVALID_ARGUMENT),
        (b"", {}, Code.INVALID_ARGUMENT),
        (PLAN, {}, Code.UNIMPLEMENTED),
    ],
)
def test_a_plan_that_cannot_be_run_fails_the_evaluation(data, executors, code):
    broken = EligibilityPlan(data, b"", executors, None, None, Interruption())
    with pytest.raises(StatusError) as caught:
        broken.weights({"a": ["mine"]})
    assert caught.value.code is code


@pytest.mark.tff
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow")
def test_a_real_plan_decides_who_takes_what(kit):
    """Two devices, one of them with data enough by a TensorFlow plan with the custom operation."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.compat.v1.placeholder(tf.string, (), "token")
        path = tf.compat.v1.placeholder(tf.string, (), "path")
        least = tf.strings.to_number(tf.io.read_file(path), tf.int64, name="least")
        # Stands for the dataset's length; ExternalDataset itself is put in below.
        handle = tf.compat.v1.placeholder(tf.variant, (), "handle")
        dataset = tf.data.experimental.from_variant(handle, tf.TensorSpec((), tf.string))
        count = dataset.reduce(tf.constant(0, tf.int64), lambda n, _: n + 1)
        tf.cast(count >= least, tf.float32, name="weight")
        tf.constant(1, tf.int64, name="version")
        tf.constant(["sum"], tf.string, name="names")
        tf.reshape(graph.get_tensor_by_name("weight:0"), [1], name="weights")
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if node.name == "handle":
            node.op = "ExternalDataset"
            node.attr.clear()
            node.input.extend(["token", "selector"])
    selector = plan_pb2.ExampleSelector(collection_uri="app:/data").SerializeToString()
    constant = tf.make_tensor_proto(selector, tf.string, ())
    node = graph_def.node.add(name="selector", op="Const")
    node.attr["value"].tensor.CopyFrom(constant)
    node.attr["dtype"].type = tf.string.as_datatype_enum
    info = graph_def.node.add(name="info", op="CreateTaskEligibilityInfo")
    info.input.extend(["version", "names", "weights"])
    message = plan(input_filepath_tensor_name="path:0", task_eligibility_info_tensor_name="info:0")
    message.phase.tensorflow_spec.dataset_token_tensor_name = "token:0"
    message.graph = graph_def.SerializeToString()
    task = EligibilityTask(message.SerializeToString(), b"3")

    server = Server(Plugins.load(environ={}, working_folder="/"), populations=["p"])
    with ServerThread(server) as running:
        running.run(server.services.eligibility_tasks.set("p", task)).result()
        spec = running.server.services.tasks.submit(_spec(kit))
        running.run(spec).result()
        outcomes = {}
        for examples in (1, 5):
            store = CallableStore(lambda selector, n=examples: [b"x"] * n)
            with Client(server.url, "p", stores=store, executors=default_executors()) as client:
                outcomes[examples] = client.run_once()
    assert outcomes[1].outcome is Outcome.REJECTED
    # It was given the task; that its plan is none is another matter.
    assert outcomes[5].outcome is Outcome.FAILED
    assert [result.task_name for result in outcomes[5].tasks] == ["sum"]


def _spec(kit):
    from fcp_core.rounds.tasks import TaskSpec

    return TaskSpec("p", "sum", plan=b"", aggregation=kit.sum_configuration(), goal_count=1)
