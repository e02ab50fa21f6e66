"""Every built-in aggregator obeys the laws, and computes what plain NumPy does."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.testing.aggregators import AggregatorConformance, tensors

BUILT_IN = {factory.name: factory for factory in fcp_register_aggregators()}
DTYPES = (DataType.FLOAT, DataType.DOUBLE, DataType.INT32, DataType.INT64, DataType.UINT64)


def elementwise(uri, dtype=DataType.FLOAT, shape=(2, 3), parameters=()):
    return Intrinsic(
        uri, (TensorSpec("in", dtype, shape),), (TensorSpec("out", dtype, shape),), parameters
    )


def weighted(dtype=DataType.FLOAT, weight=DataType.INT32, weight_shape=()):
    return Intrinsic(
        "federated_weighted_mean",
        (TensorSpec("in", dtype, (3,)), TensorSpec("weight", weight, weight_shape)),
        (TensorSpec("out", dtype, (3,)),),
    )


def parameter(value, dtype=np.int32, name=""):
    return Parameter(name, np.array(value, dtype))


class SumLaws(AggregatorConformance):
    factory = BUILT_IN["federated_sum"]

    def reference(self, contributions):
        spec = self.intrinsic.inputs[0]
        zero = np.zeros(spec.shape, spec.dtype.numpy)
        return [sum((item[0] for item in contributions), zero).astype(zero.dtype)]


class TestSumOfFloat(SumLaws):
    intrinsic = elementwise("federated_sum")


@pytest.mark.slow
class TestSumOfDoubleScalars(SumLaws):
    intrinsic = elementwise("federated_sum", DataType.DOUBLE, ())


@pytest.mark.slow
class TestSumOfInt32(SumLaws):
    intrinsic = elementwise("federated_sum", DataType.INT32)


class TestSumOfInt64(SumLaws):
    intrinsic = elementwise("federated_sum", DataType.INT64, (4,))


class TestSumOfUint64(SumLaws):
    intrinsic = elementwise("federated_sum", DataType.UINT64, (1, 1, 2))


class TestMin(AggregatorConformance):
    factory = BUILT_IN["federated_min"]
    intrinsic = elementwise("federated_min")

    def reference(self, contributions):
        if not contributions:
            return [np.full((2, 3), np.finfo("f4").max, "f4")]
        return [np.min([item[0] for item in contributions], axis=0)]


class TestMaxOfInt64(AggregatorConformance):
    factory = BUILT_IN["federated_max"]
    intrinsic = elementwise("federated_max", DataType.INT64)

    def reference(self, contributions):
        if not contributions:
            return [np.full((2, 3), np.iinfo("i8").min, "i8")]
        return [np.max([item[0] for item in contributions], axis=0)]


class TestMean(AggregatorConformance):
    factory = BUILT_IN["federated_mean"]
    intrinsic = elementwise("federated_mean")

    def reference(self, contributions):
        if not contributions:
            return [np.full((2, 3), np.nan, "f4")]
        return [np.mean([item[0] for item in contributions], axis=0, dtype="f4")]


class TestUnweightedMean(TestMean):
    factory = BUILT_IN["unweighted_mean"]


class WeightedMeanLaws(AggregatorConformance):
    factory = BUILT_IN["federated_weighted_mean"]

    def contributions(self):
        value, weight = self.intrinsic.inputs
        return st.tuples(tensors(value), tensors(weight).map(lambda w: np.asarray(abs(w)))).map(
            list
        )

    def refused(self):
        value, weight = self.intrinsic.inputs
        if weight.dtype is DataType.UINT64:
            return st.tuples(
                st.just(np.full(value.shape, np.inf, value.dtype.numpy)), tensors(weight)
            ).map(list)
        bad = st.integers(-5, -1).map(lambda w: np.full(weight.shape, w, weight.dtype.numpy))
        return st.tuples(tensors(value), bad).map(list)

    def reference(self, contributions):
        dtype = self.intrinsic.inputs[0].dtype.numpy
        if not contributions:
            return [np.full(3, np.nan, dtype)]
        total = sum(value * dtype.type(weight.reshape(())) for value, weight in contributions)
        weights = sum(weight.reshape(())[()].item() for _, weight in contributions)
        with np.errstate(invalid="ignore"):
            return [total / dtype.type(weights)]


class TestWeightedMean(WeightedMeanLaws):
    intrinsic = weighted()


@pytest.mark.slow
class TestWeightedMeanOfDoubleByFloatVector(WeightedMeanLaws):
    intrinsic = weighted(DataType.DOUBLE, DataType.FLOAT, (1,))


class TestWeightedMeanByUint64(WeightedMeanLaws):
    intrinsic = weighted(weight=DataType.UINT64)


class TestUnweightedMeanOfWeighted(AggregatorConformance):
    factory = BUILT_IN["unweighted_mean"]
    intrinsic = weighted()

    def reference(self, contributions):
        if not contributions:
            return [np.full(3, np.nan, "f4")]
        return [np.mean([item[0] for item in contributions], axis=0, dtype="f4")]


class TestMedian(AggregatorConformance):
    factory = BUILT_IN["median"]
    intrinsic = elementwise("federated_mean", DataType.DOUBLE)

    def reference(self, contributions):
        if not contributions:
            return [np.full((2, 3), np.nan)]
        return [np.median([item[0] for item in contributions], axis=0)]


class TestMedianOfWeighted(AggregatorConformance):
    factory = BUILT_IN["median"]
    intrinsic = weighted(weight_shape=(1,))


class SecureSumLaws(AggregatorConformance):
    options: ClassVar = {"allow_unprotected": True}
    limit: int

    def contributions(self):
        spec = self.intrinsic.inputs[0]
        element = st.integers(0, self.limit)
        return st.lists(element, min_size=2, max_size=2).map(
            lambda values: [np.array(values, spec.dtype.numpy)]
        )

    def refused(self):
        dtype = self.intrinsic.inputs[0].dtype.numpy
        return st.sampled_from([-1, self.limit + 1]).map(lambda v: [np.array([0, v], dtype)])

    def reference(self, contributions):
        dtype = self.intrinsic.inputs[0].dtype.numpy
        return [sum((item[0] for item in contributions), np.zeros(2, dtype))]


class TestSecureSum(SecureSumLaws):
    factory = BUILT_IN["federated_secure_sum"]
    intrinsic = elementwise("federated_secure_sum", DataType.INT32, (2,), (parameter(7),))
    limit = 7


class TestSecureSumBitwidth(SecureSumLaws):
    factory = BUILT_IN["federated_secure_sum_bitwidth"]
    intrinsic = elementwise(
        "federated_secure_sum_bitwidth", DataType.INT64, (2,), (parameter([5], np.int64),)
    )
    limit = 31


class ModularSumLaws(AggregatorConformance):
    factory = BUILT_IN["federated_secure_modular_sum"]
    options: ClassVar = {"allow_unprotected": True}

    def contributions(self):
        dtype = self.intrinsic.inputs[0].dtype.numpy
        info = np.iinfo(dtype)
        element = st.one_of(
            st.integers(max(info.min, -9), 9), st.integers(int(info.min), int(info.max))
        )
        return st.lists(element, min_size=2, max_size=2).map(lambda v: [np.array(v, dtype)])

    def reference(self, contributions):
        modulus = int(self.intrinsic.parameters[0].value)
        totals = [sum(int(item[0][index]) for item in contributions) for index in range(2)]
        return [np.array([t % modulus for t in totals], self.intrinsic.inputs[0].dtype.numpy)]


class TestModularSum(ModularSumLaws):
    intrinsic = elementwise("federated_secure_modular_sum", DataType.INT32, (2,), (parameter(5),))


class TestModularSumNearTheLimit(ModularSumLaws):
    intrinsic = elementwise(
        "federated_secure_modular_sum",
        DataType.INT64,
        (2,),
        (parameter(np.iinfo("i8").max, np.int64),),
    )


class TestModularSumOfUint64(ModularSumLaws):
    intrinsic = elementwise(
        "federated_secure_modular_sum",
        DataType.UINT64,
        (2,),
        (parameter(np.iinfo("u8").max - np.uint64(3), np.uint64),),
    )


def column(name, dtype):
    return TensorSpec(name, dtype, (-1,))


def grouping_sum(name, dtype, output=None):
    return Intrinsic(
        "GoogleSQL:sum", (column(name, dtype),), (column(f"{name}_sum", output or dtype),)
    )


class GroupByLaws(AggregatorConformance):
    factory = BUILT_IN["fedsql_group_by"]
    minimum = 1

    def refused(self):
        return (
            self.contributions()
            .filter(lambda c: len(c) > 1)
            .map(lambda c: [*c[:-1], np.concatenate([c[-1], c[-1], np.zeros(1, c[-1].dtype)])])
        )

    def normalise(self, result):
        rows = sorted(zip(*(column.tolist() for column in result), strict=True), key=repr)
        columns = list(zip(*rows, strict=True)) if rows else [[] for _ in result]
        normal = []
        for values, tensor in zip(columns, result, strict=True):
            column = np.empty(len(values), tensor.dtype)
            column[:] = values
            normal.append(column)
        return normal

    def reference(self, contributions):
        keys = len(self.intrinsic.inputs)
        totals, counts = {}, Counter()
        for contribution in contributions:
            rows = list(zip(*(column.tolist() for column in contribution), strict=True))
            counts.update({row[:keys] for row in rows})
            for row in rows:
                key = row[:keys]
                old = totals.get(key, (0,) * (len(row) - keys))
                totals[key] = tuple(a + b for a, b in zip(old, row[keys:], strict=True))
        rows = [(*key, *totals[key]) for key in totals if counts[key] >= self.minimum]
        result = []
        specs = [*self.intrinsic.outputs, *(n.outputs[0] for n in self.intrinsic.nested)]
        for index, spec in enumerate(specs):
            column = np.empty(len(rows), spec.dtype.numpy)
            column[:] = [row[index] for row in rows]
            result.append(column)
        return result


class TestGroupByComposite(GroupByLaws):
    intrinsic = Intrinsic(
        "fedsql_group_by",
        (column("k1", DataType.STRING), column("k2", DataType.INT32)),
        (column("k1_out", DataType.STRING), column("", DataType.INT32)),
        nested=(
            grouping_sum("v", DataType.INT32, DataType.INT64),
            grouping_sum("w", DataType.FLOAT, DataType.DOUBLE),
        ),
    )

    def contributions(self):
        def rows(n):
            few = st.lists(st.integers(0, 2), min_size=n, max_size=n)
            numbers = st.lists(st.integers(-100, 100), min_size=n, max_size=n)
            return st.tuples(few, few, numbers, numbers).map(
                lambda c: [
                    np.array([b"k%d" % k for k in c[0]] or [], object),
                    *(np.array(v, d) for v, d in zip(c[1:], ("i4", "i4", "f4"), strict=True)),
                ]
            )

        return st.integers(0, 5).flatmap(rows)


@pytest.mark.slow
class TestGroupByAtLeastThreeDevices(TestGroupByComposite):
    minimum = 3
    intrinsic = Intrinsic(
        "fedsql_group_by",
        TestGroupByComposite.intrinsic.inputs,
        TestGroupByComposite.intrinsic.outputs,
        (parameter(3, np.int64, "min_contributors_to_group"),),
        TestGroupByComposite.intrinsic.nested,
    )


@pytest.mark.parametrize("dtype", [*DTYPES, DataType.STRING])
def test_group_by_key_of_every_dtype(dtype):
    class Laws(GroupByLaws):
        max_examples = 10
        intrinsic = Intrinsic(
            "fedsql_group_by",
            (column("k", dtype),),
            (column("k", dtype),),
            nested=(grouping_sum("v", DataType.INT64),),
        )

    laws = Laws()
    laws.test_the_result_is_that_of_the_reference()
    laws.test_shards_that_are_merged_equal_one()
    laws.test_a_loaded_dump_goes_on()


class TestGroupByWithoutKeys(GroupByLaws):
    intrinsic = Intrinsic(
        "fedsql_group_by",
        nested=(grouping_sum("v", DataType.DOUBLE), grouping_sum("w", DataType.UINT64)),
    )


@pytest.mark.slow
class TestGroupByWithoutSums(GroupByLaws):
    intrinsic = Intrinsic(
        "fedsql_group_by",
        (column("k", DataType.INT32), column("j", DataType.INT64)),
        (column("k", DataType.INT32), column("j", DataType.INT64)),
    )


class TestLoneSum(AggregatorConformance):
    factory = BUILT_IN["GoogleSQL:sum"]
    intrinsic = grouping_sum("v", DataType.INT32, DataType.INT64)

    def reference(self, contributions):
        values = np.concatenate([np.zeros(0, "i8"), *(item[0] for item in contributions)])
        return [values.sum(keepdims=True, dtype="i8") if values.size else np.zeros(0, "i8")]
