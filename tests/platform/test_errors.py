"""What a program's mistakes lead to: the errors of the platform's public names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import msgspec
import tensorflow as tf
import tensorflow_federated as tff

import fcp_platform
from fcp_core.protocol.protos import plan_pb2
from fcp_core.rounds.tasks import AssignmentMode
from fcp_platform import lowering
from fcp_platform.data_source import selectors_in_order
from tests.platform.mistakes import DATA, SELECTOR, STATE, count, good

pytestmark = [pytest.mark.tff, pytest.mark.slow]


class TestComputation:
    def test_properties(self) -> None:
        comp = fcp_platform.FederatedComputation(good, name="a/b_1")
        assert comp.name == "a/b_1"
        assert comp.wrapped_computation is good
        assert comp.type_signature == good.type_signature
        form = comp.distribute_aggregate_form
        assert isinstance(form, tff.backends.mapreduce.DistributeAggregateForm)
        assert comp.distribute_aggregate_form is form
        assert comp == fcp_platform.FederatedComputation(good, name="a/b_1")
        assert hash(comp) == hash(fcp_platform.FederatedComputation(good, name="a/b_1"))
        assert comp != fcp_platform.FederatedComputation(good, name="other")

    @pytest.mark.parametrize("name", ["", "a/", "/a", "a b", "a-b", "a//b", "a\n"])
    def test_name(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"^name must match"):
            fcp_platform.FederatedComputation(good, name=name)

    def test_not_a_computation(self) -> None:
        with pytest.raises(TypeError, match="must be a TFF computation"):
            fcp_platform.FederatedComputation(lambda state, data: (state, data), name="a")

    def test_arguments_and_results(self) -> None:
        @tff.federated_computation(STATE)
        def one_argument(state: Any) -> Any:
            return state, state

        @tff.federated_computation(STATE, DATA)
        def three_results(state: Any, data: Any) -> Any:
            return state, state, state

        for comp, message in (
            (one_argument, "take two arguments"),
            (three_results, "return two values"),
        ):
            with pytest.raises(TypeError, match=message):
                fcp_platform.FederatedComputation(comp, name="a")

    def test_placements(self) -> None:
        @tff.federated_computation(DATA, STATE)
        def swapped(data: Any, state: Any) -> Any:
            return state, tff.federated_sum(tff.federated_map(count, data))

        @tff.federated_computation(STATE, DATA)
        def kept_at_clients(state: Any, data: Any) -> Any:
            return state, tff.federated_map(count, data)

        with pytest.raises(TypeError, match=r"first argument \(state\) must be placed at SERVER"):
            fcp_platform.FederatedComputation(swapped, name="a")
        with pytest.raises(TypeError, match=r"second result \(metrics\) must be placed at SERVER"):
            fcp_platform.FederatedComputation(kept_at_clients, name="a")

    def test_state_of_another_type(self) -> None:
        @tff.federated_computation(STATE, DATA)
        def changed(state: Any, data: Any) -> Any:
            metric = tff.federated_sum(tff.federated_map(count, data))
            return tff.federated_zip((metric, state)), metric

        with pytest.raises(TypeError, match="return a state of the type it takes"):
            fcp_platform.FederatedComputation(changed, name="a")

    def test_intrinsic_that_devices_cannot_run(self) -> None:
        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            counted = tff.federated_map(
                tff.federated_computation(lambda d: tff.sequence_map(length, d)), data
            )
            summed = tff.federated_map(tff.federated_computation(tff.sequence_sum), counted)
            return state, tff.federated_sum(summed)

        with pytest.raises(ValueError, match=r"the intrinsic sequence_(map|sum) cannot run"):
            fcp_platform.FederatedComputation(comp, name="a")

    def test_broadcast_of_an_aggregate(self) -> None:
        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            sum_ = tff.federated_sum(tff.federated_map(count, data))
            return state, tff.federated_sum(tff.federated_broadcast(sum_))

        with pytest.raises(ValueError, match=r"depends on an aggregate: .* next round$"):
            fcp_platform.FederatedComputation(comp, name="a")


@tff.tensorflow.computation(np.str_)
def length(example: Any) -> Any:
    return tf.strings.length(example)


class TestLowering:
    def lower(self, comp: Any) -> lowering.Lowered:
        return fcp_platform.FederatedComputation(comp, name="a").lowered

    def test_nothing_aggregated(self) -> None:
        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            return state, state

        with pytest.raises(ValueError, match="aggregates nothing"):
            self.lower(comp)

    def test_unknown_dimension(self) -> None:
        @tff.tensorflow.computation(tff.SequenceType(np.str_))
        def vector(examples: Any) -> Any:
            return tf.fill([examples.reduce(np.int32(0), lambda n, _: n + 1)], 1.0)

        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            return state, tff.federated_max(tff.federated_map(vector, data))

        with pytest.raises(TypeError, match=r"federated_max cannot aggregate 'update/0'"):
            self.lower(comp)

    def test_what_is_no_tensorflow(self) -> None:
        """One sentence, and no syntax tree."""

        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            jax = tff.jax.computation(lambda n: n + 1, np.int32)
            return state, tff.federated_sum(tff.federated_map(jax, tff.federated_map(count, data)))

        with pytest.raises(ValueError, match=r"what clients do .* Cannot compile XLA") as error:
            self.lower(comp)
        assert "\n" not in str(error.value)

    def test_function_that_reaches_out(self) -> None:
        @tff.tensorflow.computation(np.int32, np.int32)
        def add(a: Any, b: Any) -> Any:
            return a + b

        @tff.federated_computation(STATE, DATA)
        def comp(state: Any, data: Any) -> Any:
            n = tff.federated_map(count, data)
            other = tff.tensorflow.computation(lambda: tf.constant(3))()
            accumulate = tff.federated_computation(
                lambda a, b: add(add(a, b), b), [np.int32, np.int32]
            )
            report = tff.federated_computation(lambda a: add(a, other), np.int32)
            return state, tff.federated_aggregate(n, 0, accumulate, add, report)

        with pytest.raises(ValueError, match="report function of a federated_aggregate uses"):
            self.lower(comp)


class TestDataSource:
    def test_type_and_selection(self) -> None:
        source = fcp_platform.FederatedDataSource("p", SELECTOR)
        assert source.federated_type == DATA
        iterator = source.iterator()
        assert iterator.federated_type == DATA
        assert iterator.select(3) == fcp_platform.DataSelectionConfig("p", SELECTOR, 1, 3)
        nested = fcp_platform.FederatedDataSource("p", {"a": SELECTOR, "b": {"c": SELECTOR}})
        strings = tff.SequenceType(np.str_)
        assert nested.federated_type == tff.FederatedType(
            [("a", strings), ("b", [("c", strings)])], tff.CLIENTS
        )

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"^population_name must match"):
            fcp_platform.FederatedDataSource("p p", SELECTOR)
        with pytest.raises(TypeError, match="must be an ExampleSelector"):
            fcp_platform.FederatedDataSource("p", {"a": "app:/x"})
        with pytest.raises(ValueError, match="7"):
            fcp_platform.FederatedDataSource("p", SELECTOR, 7)
        iterator = fcp_platform.FederatedDataSource("p", SELECTOR).iterator()
        for k in (None, 0, -1):
            with pytest.raises(ValueError, match="k must be positive"):
                iterator.select(k)
        for k in (True, 2.5, 2.0, "2", np.bool_(True)):
            with pytest.raises(TypeError, match="k must be a whole number"):
                iterator.select(k)
        assert type(iterator.select(np.int64(2)).num_clients) is int

    def test_iterators_as_bytes(self) -> None:
        nested = {"b": [SELECTOR, {"c": SELECTOR}], "a": SELECTOR}
        for selector, mode in ((SELECTOR, AssignmentMode.MULTIPLE), (nested, 1)):
            iterator = fcp_platform.FederatedDataSource("p/q", selector, mode).iterator()
            again = type(iterator).from_bytes(iterator.to_bytes())
            assert again.federated_type.is_equivalent_to(iterator.federated_type)
            chosen, wanted = again.select(2), iterator.select(2)
            assert chosen.task_assignment_mode == AssignmentMode(wanted.task_assignment_mode).number
            assert dataclasses.replace(chosen, task_assignment_mode=mode) == wanted
        for wrong in (b"", b"x", msgspec.msgpack.encode(["p p", b"", 1])):
            with pytest.raises(ValueError, match="no iterator of a data source"):
                type(iterator).from_bytes(wrong)

    def test_lists_and_tuples_of_selectors(self) -> None:
        other = plan_pb2.ExampleSelector(collection_uri="app:/y")
        source = fcp_platform.FederatedDataSource("p", {"b": [SELECTOR, other], "a": (other,)})
        strings = tff.SequenceType(np.str_)
        wanted = tff.StructType([("b", [strings, strings]), ("a", [strings])])
        assert wanted.is_equivalent_to(source.federated_type.member)

    def test_selectors_in_the_order_of_the_computation(self) -> None:
        other = plan_pb2.ExampleSelector(collection_uri="app:/y")
        strings = tff.SequenceType(np.str_)
        wanted = tff.StructType([("a", strings), ("b", [strings, strings])])
        found = selectors_in_order({"b": (SELECTOR, other), "a": other}, wanted)
        assert found == [other, SELECTOR, other]
        for wrong in ({"a": other}, {"a": other, "c": [other, other]}, [other, [other, other]]):
            with pytest.raises(TypeError):
                selectors_in_order(wrong, wanted)
