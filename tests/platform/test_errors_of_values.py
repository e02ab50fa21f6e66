"""What a program's mistakes about values, references and contexts lead to."""

from __future__ import annotations

import asyncio
import collections
import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import attrs
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_platform import values
from tests.platform.mistakes import SELECTOR, good

pytestmark = [pytest.mark.tff, pytest.mark.slow]


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    made = fcp_platform.FederatedContext("a/population")
    yield made
    made.__exit__(None, None, None)


def select(**kwargs: Any) -> Any:
    source = fcp_platform.FederatedDataSource("a/population", SELECTOR, **kwargs)
    return source.iterator().select(1)


def invoke(context: Any, comp: Any, *args: Any) -> Any:
    """Invoke inside an event loop, as a program does."""

    async def program() -> Any:
        return context.invoke(comp, tff.structure.Struct([(None, arg) for arg in args]))

    return asyncio.run(program())


class TestContext:
    comp = fcp_platform.FederatedComputation(good, name="good")

    def test_constructor(self) -> None:
        with pytest.raises(ValueError, match=r"^population_name must match"):
            fcp_platform.FederatedContext("a b")
        with pytest.raises(ValueError, match="minimum_fraction"):
            fcp_platform.FederatedContext("a", minimum_fraction=0)
        with pytest.raises(ValueError, match="resources must be 'inline' or 'uri', not 'both'"):
            fcp_platform.FederatedContext("a", resources="both")
        with pytest.raises(UsageError, match="retry_mim"):
            fcp_platform.FederatedContext("a", fcp_platform.LocalServer(config={"retry_mim": "1s"}))
        with pytest.raises(
            TypeError, match=r"'goal_count'; fields .* are deadline, over_selection"
        ):
            fcp_platform.FederatedContext("a", goal_count=3)
        with pytest.raises(TypeError, match="a LocalServer or a RemoteServer, not 'https://x/'"):
            fcp_platform.FederatedContext("a", "https://x/")
        with pytest.raises(TypeError, match="'dead_line'"):
            fcp_platform.FederatedContext("a", dead_line=3.0)
        with pytest.raises(ValueError, match="deadline: Expected"):
            fcp_platform.FederatedContext("a", deadline="3")

    def test_port_is_bound_at_once(self, context: Any) -> None:
        assert context.server_port > 0
        taken = fcp_platform.LocalServer(port=context.server_port)
        with pytest.raises(UsageError, match="cannot listen") as error:
            fcp_platform.FederatedContext("a", taken)
        # What the reference raises.
        assert isinstance(error.value, OSError)
        assert error.value.errno == errno.EADDRINUSE

    def test_every_field_of_a_task_holds_for_every_round(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that a round makes aside; a field that TaskSpec gets is a keyword too."""
        from fcp_core.rounds.specification import TaskSpec
        from fcp_platform import context

        class GrownSpec(TaskSpec, frozen=True):
            patience: float | None = None

        monkeypatch.setattr(context, "TaskSpec", GrownSpec)
        fields: dict[str, Any] = {
            "deadline": 5.0,
            "over_selection": 1.5,
            "max_at_work": 3,
            "resources": "uri",
            "protocol": "simple",
            "selection": "fifo",
            "eligibility": ("minimum_separation",),
            "aggregators": {"federated_sum": "sum"},
            "options": {"fifo": {"x": 1}},
            "late_contributions": "refuse",
            "durability": "round",
            "query": '{"sql": "SELECT 1"}',
            "costs": ({"type": "zcdp", "rho": 0.5},),
            "patience": 2.5,
        }
        assert set(fields) == set(GrownSpec.__struct_fields__) - context._MADE
        made = fcp_platform.FederatedContext("a", **fields)
        made.__exit__(None, None, None)
        assert {name: getattr(made._template, name) for name in fields} == fields

    def test_other_computations(self, context: Any) -> None:
        with pytest.raises(TypeError, match="FederatedComputation if no base_context was"):
            invoke(context, good, 1, select())

        class Base:
            def invoke(self, comp: Any, arg: Any) -> Any:
                return comp, arg

        with_base = fcp_platform.FederatedContext("a", base_context=Base())
        assert with_base.invoke(good, None) == (good, None)
        with_base.__exit__(None, None, None)

    def test_arguments(self, context: Any) -> None:
        with pytest.raises(ValueError, match="two arguments"):
            invoke(context, self.comp, 1)
        with pytest.raises(TypeError, match=r"arg\[0\] must be a value or structure of values"):
            invoke(context, self.comp, None, select())
        with pytest.raises(TypeError, match=r"arg\[0\] must be a value"):
            invoke(context, self.comp, [object()], select())
        with pytest.raises(TypeError, match=r"arg\[1\] must be the result of"):
            invoke(context, self.comp, 1, [b"data"])
        for wrong in ({"a": 1}, [1, {"a": 2}]):
            with pytest.raises(ValueError, match="the state must be one value"):
                invoke(context, self.comp, wrong, select())
        with pytest.raises(ValueError, match=r"the state must be of type int32, .* shape \[2\]"):
            invoke(context, self.comp, [1, 2], select())
        other = fcp_platform.FederatedDataSource("other", SELECTOR).iterator().select(1)
        with pytest.raises(ValueError, match=r"population_names must match: .*'other'"):
            invoke(context, self.comp, 1, other)

    def test_arguments_by_name(self, context: Any) -> None:
        """They are taken by name; what TFF's own computations refuse is refused."""

        async def program(*args: Any, **kwargs: Any) -> Any:
            with tff.framework.get_context_stack().install(context):
                return self.comp(*args, **kwargs)

        with pytest.raises(TypeError, match=r"arg\[0\]"):
            asyncio.run(program(data=select(), state=object()))
        with pytest.raises(ValueError, match="the state must be"):
            asyncio.run(program(data=select(), state={"a": 1}))
        with pytest.raises(TypeError, match="no argument 'date'; those with a name are 'state', "):
            asyncio.run(program(1, date=select()))
        with pytest.raises(TypeError, match="'state' is given twice"):
            asyncio.run(program(1, state=2))
        with pytest.raises(ValueError, match="two arguments"):
            asyncio.run(program(data=select()))

    def test_data_of_another_type(self, context: Any) -> None:
        nested = fcp_platform.FederatedDataSource("a/population", {"a": SELECTOR})
        with pytest.raises(TypeError, match="reads client data of type"):
            invoke(context, self.comp, 1, nested.iterator().select(1))

    def test_not_running(self, context: Any) -> None:
        async def program() -> None:
            state, _ = context.invoke(self.comp, tff.structure.Struct.unnamed(1, select()))
            await state.get_value()

        with pytest.raises(RuntimeError, match="not running"):
            asyncio.run(program())


class TestValues:
    def test_containers(self) -> None:
        @attrs.define
        class Pair:
            b: Any
            a: Any

        named = tff.StructType([("a", np.int32), ("b", tff.TensorType(np.str_, [1]))])
        pair = collections.namedtuple("pair", ["a", "b"])
        for value in (
            {"b": ["x"], "a": 1},
            Pair(["x"], 1),
            pair(1, ["x"]),
            [1, ["x"]],
            tff.structure.Struct([("a", 1), ("b", ["x"])]),
        ):
            value_type = tff.StructType([("a", np.int32), ("b", [np.str_])])
            flat = values.flatten(value, value_type, "server")
            assert [(leaf.name, each) for leaf, each in flat] == [
                ("server/a", 1),
                ("server/b/0", "x"),
            ]
        with pytest.raises(ValueError, match="the state has no element 'b'"):
            values.flatten({"a": 1, "c": 2}, named, "server")
        with pytest.raises(ValueError, match="the state must have 2 elements"):
            values.flatten({"a": 1}, named, "server")
        deep = tff.StructType([("a/b", tff.StructType([np.int32]))])
        with pytest.raises(ValueError, match=r"the state\['a/b'\]\[0\] must be of dtype int32"):
            values.given({"a/b": [7.5]}, deep, "server")

    def test_arrays(self) -> None:
        def convert(value: Any, dtype: Any, shape: Any = ()) -> Any:
            ((leaf, each),) = values.flatten(value, tff.TensorType(dtype, shape), "server")
            return values.as_array(leaf, each)

        assert convert(7, np.float32).dtype == np.float32
        assert convert(tf.constant([1, 2]), np.int32, [None]).tolist() == [1, 2]
        assert convert("é", np.str_).item() == "é"
        assert convert([[1, 2]], np.int32, [1, 2]).tolist() == [[1, 2]]
        assert convert([], np.int32, [None]).dtype == np.int32
        assert convert(["é", b"b"], np.str_, [2]).tolist() == ["é", b"b"]
        assert convert((), np.str_, [0]).shape == (0,)
        with pytest.raises(ValueError, match="different lengths"):
            convert([[1], [1, 2]], np.int32, [2, None])
        with pytest.raises(ValueError, match="dtype"):
            convert(7.5, np.int32)
        with pytest.raises(ValueError, match="does not fit"):
            convert(300, np.int8)
        with pytest.raises(ValueError, match="shape"):
            convert(np.zeros([3]), np.float64, [2])
        with pytest.raises(ValueError, match="string"):
            convert(3, np.str_)


class TestReferences:
    def get(self, data: bytes, name: str, dtype: Any, shape: Any = ()) -> Any:
        async def program() -> Any:
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            future.set_result(data)
            reference = fcp_platform.CheckpointTensorReference(name, dtype, shape, future)
            assert reference.type_signature.shape == tuple(shape)
            value = await reference.get_value()
            assert await reference.get_value() is value
            return value

        return asyncio.run(program())

    def test_values(self) -> None:
        data = write_checkpoint(
            {
                "a": np.float32(2.5),
                "b": np.arange(3),
                "s": np.array(b"x\x00", dtype=object),
            },
            "tf_v1",
        )
        scalar = self.get(data, "a", tf.float32)
        assert scalar == 2.5
        assert scalar.dtype == np.float32
        assert self.get(data, "b", np.int64, [3]).tolist() == [0, 1, 2]
        assert self.get(data, "s", tf.string) == b"x\x00"

    def test_errors(self) -> None:
        data = write_checkpoint({"a": np.float32(2.5)}, "tf_v1")
        with pytest.raises(tf.errors.NotFoundError):
            self.get(data, "b", np.float32)
        with pytest.raises(tf.errors.InvalidArgumentError):
            self.get(data, "a", np.int32)
        with pytest.raises(tf.errors.DataLossError):
            self.get(data[:-1], "a", np.float32)
        with tf.Graph().as_default(), pytest.raises(ValueError, match="eager mode"):
            self.get(data, "a", np.float32)


def test_importing_the_package_is_cheap() -> None:
    """Neither the package nor its plugin imports TensorFlow; without it an extra is named."""
    program = """
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_federated"] = None
import fcp_platform, fcp_platform.plugin
from fcp_core.errors import MissingExtraError
assert fcp_platform.plugin.fcp_register_aggregators()
assert fcp_platform.plot([{"loss": 1.0}]).svg and list(fcp_platform.progress([1])) == [1]
for name in set(fcp_platform.__all__) - {"plot", "progress"}:
    try:
        getattr(fcp_platform, name)
    except MissingExtraError as error:
        assert error.extra == "tff"
    else:
        raise AssertionError(name)
"""
    folder = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder)


def test_a_state_that_is_a_sequence_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"'server' has the type str\*: .* make it tensors"):
        values.flatten(["a"], tff.SequenceType(np.str_), "server")
