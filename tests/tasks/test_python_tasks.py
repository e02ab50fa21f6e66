"""Python tasks, from the program to the device and back, and what refuses what."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.client import CallableStore, Client, Outcome, PythonTaskExecutor, task
from fcp_core.client.executors import InsufficientDataError, PlanRun
from fcp_core.client.executors import run_plan as run_plan_with
from fcp_core.client.interruption import Interruption
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.python_plan import KIND, PythonPlan, is_python_plan
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.server import Server
from fcp_core.server.thread import ServerThread
from fcp_core.tasks.python import ArraySpec, PythonTask, federated_averaging

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def plan_run(plan: bytes, checkpoint: bytes = b"", examples=()):
    return PlanRun(
        plan=plan_pb2.ClientOnlyPlan.FromString(plan),
        checkpoint=checkpoint,
        store=CallableStore(lambda selector: [selector.collection_uri.encode(), *examples]),
        slices=None,
        interruption=Interruption(),
    )


def run_plan(function, plan: PythonPlan, **kwargs) -> dict[str, np.ndarray]:
    executors = {KIND: PythonTaskExecutor({"t": function})}
    checkpoint = open_checkpoint(run_plan_with(executors, plan_run(plan.to_bytes(), **kwargs)))
    return {name: checkpoint.get_tensor(name) for name in checkpoint.names()}


def code_of(function, plan: PythonPlan, **kwargs) -> Code:
    with pytest.raises(StatusError) as caught:
        run_plan(function, plan, **kwargs)
    return caught.value.code


@settings(max_examples=30)
@given(
    st.text("abc/", min_size=1),
    st.dictionaries(st.text(max_size=3), st.integers() | st.booleans() | st.text(max_size=3)),
    st.dictionaries(st.text("xy", min_size=1), st.tuples(st.just("float32"), st.just((2, -1)))),
)
def test_a_plan_says_on_the_device_what_it_said_at_the_server(name, options, outputs):
    plan = PythonPlan(name, options, "app:/c", outputs)
    message = plan_pb2.ClientOnlyPlan.FromString(plan.to_bytes())
    assert is_python_plan(message)
    assert PythonPlan.of(message) == plan


def test_a_published_client_finds_nothing_that_it_could_run():
    """It takes a phase without an example query for a TensorFlow plan, and finds no such spec."""
    message = plan_pb2.ClientOnlyPlan.FromString(PythonPlan("train").to_bytes())
    assert message.HasField("phase")
    assert not message.phase.HasField("example_query_spec")
    assert not message.phase.HasField("tensorflow_spec")
    assert not message.graph
    assert not message.tflite_graph
    with pytest.raises(StatusError) as caught:
        run_plan_with({"tensorflow_spec": None}, plan_run(PythonPlan("train").to_bytes()))
    assert caught.value.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"no json", Code.INVALID_ARGUMENT),
        (b"{}", Code.INVALID_ARGUMENT),
        (b'{"version": 1, "task": "t"}', Code.INVALID_ARGUMENT),
        (b"[1]", Code.INVALID_ARGUMENT),
        (b'{"version": 2}', Code.UNIMPLEMENTED),
    ],
)
def test_a_plan_that_is_broken_or_of_later_is_refused(value, code):
    message = plan_pb2.ClientOnlyPlan.FromString(PythonPlan("t").to_bytes())
    message.tensorflow_config_proto.value = value
    with pytest.raises(StatusError) as caught:
        run_plan_with({KIND: PythonTaskExecutor({})}, plan_run(message.SerializeToString()))
    assert caught.value.code is code


def test_a_task_gets_arrays_examples_and_settings():
    seen = {}

    def function(arrays, examples, options):
        seen.update(arrays=arrays, twice=[list(examples), list(examples)], options=options)
        return {"out": arrays["in"] * 2}, 3

    plan = PythonPlan("t", {"rate": 0.5}, "app:/c", {"out": ("float32", (2,))})
    initial = write_checkpoint({"in": np.array([1, 2], np.float32)}, "federated_compute")
    result = run_plan(function, plan, checkpoint=initial, examples=[b"x"])
    assert seen["twice"] == [[b"app:/c", b"x"]] * 2
    assert seen["options"] == {"rate": 0.5}
    assert set(result) == {"update/out", "weight"}
    assert result["update/out"].tolist() == [2, 4]
    assert result["weight"] == 3


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("nothing", Code.INVALID_ARGUMENT),
        (({"out": [1.0]}, "many"), Code.INVALID_ARGUMENT),
        (({}, 1), Code.INVALID_ARGUMENT),
        (({"out": [1.0], "more": [1.0]}, 1), Code.INVALID_ARGUMENT),
        (({"out": [[1.0]]}, 1), Code.INVALID_ARGUMENT),
        (({"out": ["text"]}, 1), Code.INVALID_ARGUMENT),
        (({"out": np.ma.array([1.0], mask=[True])}, 1), Code.INVALID_ARGUMENT),
        (({"out": [1.0]}, 0), Code.FAILED_PRECONDITION),
        (({"out": [1.0]}, float("nan")), Code.FAILED_PRECONDITION),
    ],
)
def test_what_a_task_returns_is_checked(answer, code):
    plan = PythonPlan("t", outputs={"out": ("float32", (1,))})
    assert code_of(lambda *_: answer, plan) is code


def test_a_task_may_fail_in_its_own_way():
    plan = PythonPlan("t", outputs={"out": ("float32", (1,))})

    def too_little(arrays, examples, options):
        raise InsufficientDataError("one example")

    assert code_of(too_little, plan) is Code.FAILED_PRECONDITION
    assert code_of(lambda *_: 1 // 0, plan) is Code.INTERNAL
    assert code_of(lambda *_: None, PythonPlan("other")) is Code.UNIMPLEMENTED


def test_a_name_is_registered_once():
    task("tests.once")(test_a_name_is_registered_once)
    task("tests.once")(test_a_name_is_registered_once)
    with pytest.raises(UsageError, match=r"two callables want to be the task 'tests\.once'"):
        task("tests.once")(lambda *_: None)


def test_an_array_that_would_lose_its_mask_is_refused():
    whole = np.ma.array([1.0, 2.0], mask=[False, False])
    PythonTask("p", "n", "t", 1).to_spec({"a": whole})
    with pytest.raises(StatusError, match="tensor 'a' is an array of which a part is masked"):
        PythonTask("p", "n", "t", 1).to_spec({"a": np.ma.array([1.0, 2.0], mask=[False, True])})


@pytest.mark.parametrize(
    ("fields", "arrays", "message"),
    [
        ({}, {}, "no outputs"),
        ({}, {"a": np.zeros(1, np.int32)}, "'a': arrays for a weighted_mean are float32, float64"),
        ({"aggregation": "sum"}, {"a": np.zeros(1, bool)}, "not 'bool'"),
        ({"outputs": {"a": ArraySpec("nonsense")}}, {}, "not 'nonsense'"),
        ({"aggregation": {"b": "sum"}}, {"a": np.zeros(1)}, "'b', which is no output"),
        ({"aggregation": {"a": "median"}}, {"a": np.zeros(1)}, "weighted_mean, mean, sum"),
        (
            {"aggregation": "secure_sum"},
            {"a": np.zeros(1)},
            "'a': arrays for a secure_sum are int32, int64",
        ),
        ({"aggregation": "secure_sum"}, {"a": np.zeros(1, int)}, r"ArraySpec\(largest=...\)"),
        (
            {"aggregation": "secure_sum", "outputs": {"a": ArraySpec("int64", (), largest=-1)}},
            {},
            "from 0 to below",
        ),
        ({"settings": {"a": object()}}, {"a": np.zeros(1)}, "settings of task 't'"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_in_the_program(fields, arrays, message):
    with pytest.raises(UsageError, match=message):
        PythonTask("p", "n", "t", 1, **fields).to_spec(arrays)


def test_devices_train_in_rounds():
    def step(arrays, examples, options):
        mine = np.array([float(example) for example in examples])
        return {
            "mean": arrays["mean"] + options["rate"] * (mine.mean() - arrays["mean"]),
            "largest": mine.max(),
            "seen": np.array([len(mine)]),
        }, len(mine)

    data = {0: [1.0, 2.0, 3.0], 1: [10.0], 2: []}
    hurry = {"retry_min": "0s", "retry_max": "0s", "check_in_hold": "5s"}
    rounds = PythonTask(
        "p",
        "mean",
        "step",
        goal_count=2,
        settings={"rate": 1.0},
        outputs={
            "mean": ArraySpec("float64"),
            "largest": ArraySpec("float32"),
            "seen": ArraySpec("int64", (1,)),
        },
        aggregation={"largest": "mean", "seen": "sum"},
    )
    server = Server(Plugins.load(environ={}, overrides=hurry, working_folder="/"))
    server.services.add_population("p")
    with ServerThread(server) as running:
        clients = [
            Client(
                server.url,
                "p",
                stores=CallableStore(lambda selector, n=n: (b"%f" % x for x in data[n])),
                executors={KIND: PythonTaskExecutor({"step": step})},
            )
            for n in (0, 1)
        ]
        outcomes = []

        def live(client):
            outcomes.extend(result.outcome for result in client.run(num_rounds=-1))

        threads = [threading.Thread(target=live, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        results = list(
            federated_averaging(rounds, {"mean": np.zeros(())}, rounds=3, run=running.complete)
        )
        for client in clients:
            client.interrupt()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    assert outcomes.count(Outcome.CONTRIBUTED) >= 6
    for result in results:
        assert result.weight == pytest.approx(sum(len(mine) for mine in data.values()), abs=2)
        assert set(result.arrays) == {"mean", "largest", "seen"}
        assert result.arrays["seen"].tolist() == [int(result.weight)]


@pytest.mark.slow
def test_the_example_learns():
    pytest.importorskip("sklearn")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "numpy_digits" / "run.py"), "--rounds", "6"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [float(value) for value in re.findall(r"accuracy ([\d.]+)", run.stdout)]
    assert len(found) == 6
    assert found[-1] > 0.85
    assert "6 rounds in" in run.stdout


@pytest.mark.slow
def test_one_task_is_aggregated_in_four_ways():
    """The script compares with what the devices know, and says so."""
    pytest.importorskip("cryptography")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "four_ways" / "run.py")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    ways = {line[:15].rstrip(): line[15:].split() for line in run.stdout.splitlines()[:4]}
    assert list(ways) == ["sum", "weighted mean", "secure sum", "sum with noise"]
    assert ways["sum"] == ways["secure sum"] != ways["sum with noise"]
    assert run.stdout.count(": yes") == 4


#: Where ``make test`` puts PyTorch, which does not go beside TensorFlow Federated.
TORCH = ROOT / ".venv-torch"


@pytest.fixture
def with_pytorch(monkeypatch):
    """Let processes import PyTorch."""
    if (TORCH / "torch").exists():
        there = [str(TORCH), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, there)))
    elif importlib.util.find_spec("torch") is None:
        pytest.skip("there is no PyTorch; 'make test' fetches it")


def run_with_pytorch(*arguments):
    return subprocess.run(
        [sys.executable, *arguments, str(EXAMPLES / "pytorch_digits" / "run.py"), "--rounds", "5"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_pytorch_example_says_what_is_missing():
    # -S: without the packages that are installed.
    assert "pip install torch" in run_with_pytorch("-S")


@pytest.mark.slow
def test_the_pytorch_example_learns(with_pytorch):
    pytest.importorskip("sklearn")
    found = [float(value) for value in re.findall(r"accuracy ([\d.]+)", run_with_pytorch())]
    assert len(found) == 5
    assert found[-1] > 0.85


@pytest.mark.slow
def test_pytorch_trains_as_numpy_does(with_pytorch):
    """Both examples do the same arithmetic, so a fleet may mix them."""
    script = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import devices, digits
rng = np.random.default_rng(1)
examples = np.zeros(50, digits.EXAMPLE)
examples["pixels"], examples["digit"] = rng.random((50, 64)), rng.integers(0, 10, 50)
network, settings = digits.initial(2), {"epochs": 2, "learning_rate": 0.1, "batch": 8}
trained, weight = devices.train(network, [example.tobytes() for example in examples], settings)
wanted = digits.train(network, examples, 2, 0.1, 8)
assert weight == 50
for name, values in wanted.items():
    np.testing.assert_allclose(trained[name], values, rtol=1e-4, atol=1e-5)
    assert trained[name].dtype == np.float32
    assert not np.array_equal(values, network[name])
"""
    subprocess.run([sys.executable, "-c", script, str(EXAMPLES / "pytorch_digits")], check=True)
