"""Whole checkpoints: all intrinsics or none, in order, once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fcp_aggregators.plugin import fcp_register_aggregators
from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.aggregation.binding import bind
from fcp_core.aggregation.checkpoint_aggregator import CheckpointAggregator, KeptBudget
from fcp_core.aggregation.configuration import parse_configuration
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.protocol.status import Code, StatusError

FACTORIES = {factory.name: factory for factory in fcp_register_aggregators()}
VALUE = TensorSpec("v", DataType.FLOAT, (2,))
WEIGHT = TensorSpec("w", DataType.INT32)
COLUMN = TensorSpec("c", DataType.INT32, (-1,))
SUM = Intrinsic("federated_sum", (VALUE,), (TensorSpec("sum", DataType.FLOAT, (2,)),))
MEAN = Intrinsic(
    "federated_weighted_mean", (VALUE, WEIGHT), (TensorSpec("mean", DataType.FLOAT, (2,)),)
)
GROUPS = Intrinsic(
    "fedsql_group_by",
    (COLUMN,),
    (TensorSpec("", DataType.INT32, (-1,)),),
    nested=(Intrinsic("GoogleSQL:sum", (COLUMN,), (TensorSpec("groups", DataType.INT64, (-1,)),)),),
)


def checkpoint(v=(1, 2), w=1, c=(1, 1, 2), **others):
    return {
        "v": np.array(v, "f4"),
        "w": np.array(w, "i4"),
        "c": np.array(c, "i4"),
        "ignored": np.array([b"x"], object),
    } | others


def bound(*intrinsics, chosen=(), options=(), factories=FACTORIES):
    return bind(intrinsics, factories, dict(chosen), dict(options))


def error(code, function, *args):
    with pytest.raises(StatusError) as caught:
        function(*args)
    assert caught.value.code is code
    return caught.value.message


def test_all_intrinsics_see_each_checkpoint():
    aggregator = CheckpointAggregator(bound(SUM, MEAN, GROUPS))
    aggregator.accumulate(checkpoint())
    aggregator.accumulate(checkpoint(v=(4, 5), w=2, c=(3,)))
    assert aggregator.num_inputs == 2
    result = aggregator.report()
    assert list(result) == ["sum", "mean", "groups"]
    assert result["sum"].tolist() == [5, 7]
    assert result["mean"].tolist() == [3, 4]
    assert result["groups"].tolist() == [2, 2, 3]


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"v": (1, np.inf)}, Code.INVALID_ARGUMENT, "tensor 'v' has inf among its numbers"),
        ({"w": -1}, Code.INVALID_ARGUMENT, "not -1"),
        ({"v": (1, 2, 3)}, Code.INVALID_ARGUMENT, "expects v: float[2], the checkpoint has float3"),
        ({"v": np.zeros(2)}, Code.INVALID_ARGUMENT, "the checkpoint has float64[2]"),
        ({"v": np.array([b"", b""], object)}, Code.INVALID_ARGUMENT, "has string[2]"),
        ({"c": 1}, Code.INVALID_ARGUMENT, "expects c: int32[?]"),
        ({"c": None}, Code.NOT_FOUND, "no tensor 'c'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(changes, code, expected):
    aggregator = CheckpointAggregator(bound(SUM, MEAN, GROUPS))
    aggregator.accumulate(checkpoint())
    before = aggregator.dump()
    broken = checkpoint()
    for name, value in changes.items():
        if value is None:
            del broken[name]
        elif isinstance(value, np.ndarray):
            broken[name] = value
        else:
            broken[name] = np.array(value, broken[name].dtype)
    assert expected in error(code, aggregator.accumulate, broken)
    assert aggregator.dump() == before
    assert aggregator.num_inputs == 1


def test_a_name_is_fetched_once_and_must_satisfy_every_specification():
    class Counting(dict):
        fetched = 0

        def __getitem__(self, name):
            self.fetched += name == "v"
            return super().__getitem__(name)

    counting = Counting(checkpoint())
    aggregator = CheckpointAggregator(bound(SUM, MEAN))
    aggregator.accumulate(counting)
    assert counting.fetched == 1

    longer = Intrinsic(
        "federated_sum",
        (TensorSpec("v", DataType.FLOAT, (3,)),),
        (TensorSpec("other", DataType.FLOAT, (3,)),),
    )
    torn = CheckpointAggregator(bound(SUM, longer))
    for v in ((1, 2), (1, 2, 3)):
        error(Code.INVALID_ARGUMENT, torn.accumulate, checkpoint(v))


def test_merge_and_dump_keep_everything():
    whole = CheckpointAggregator(bound(SUM, MEAN, GROUPS))
    parts = [CheckpointAggregator(bound(SUM, MEAN, GROUPS)) for _ in range(3)]
    for index in range(9):
        item = checkpoint((index, 1), index + 1, (index % 2, index))
        whole.accumulate(item)
        parts[index % 3].accumulate(item)
    first = CheckpointAggregator.load(bound(SUM, MEAN, GROUPS), parts[0].dump())
    for part in parts[1:]:
        first.merge(part)
    assert first.num_inputs == 9
    expected, got = whole.report(), first.report()
    assert list(expected) == list(got)
    np.testing.assert_array_equal(expected["sum"], got["sum"])
    np.testing.assert_array_equal(expected["mean"], got["mean"])
    assert sorted(expected["groups"]) == sorted(got["groups"])


def test_nothing_goes_on_after_the_end():
    for end in (CheckpointAggregator.report, CheckpointAggregator.abort):
        aggregator = CheckpointAggregator(bound(SUM))
        other = CheckpointAggregator(bound(SUM))
        end(aggregator)
        error(Code.ABORTED, aggregator.report)
        error(Code.ABORTED, aggregator.dump)
        error(Code.ABORTED, getattr, aggregator, "num_inputs")
        # The tensors are fetched first: a checkpoint without them is NOT_FOUND all the same.
        error(Code.NOT_FOUND, aggregator.accumulate, {})
        error(Code.ABORTED, aggregator.accumulate, checkpoint())
        error(Code.ABORTED, other.merge, aggregator)
        aggregator.merge(other)


def test_states_that_are_not_of_this_configuration():
    dump = CheckpointAggregator(bound(SUM)).dump()
    assert "1 aggregators" in error(
        Code.INVALID_ARGUMENT, CheckpointAggregator.load, bound(SUM, MEAN), dump
    )
    error(Code.INVALID_ARGUMENT, CheckpointAggregator.load, bound(GROUPS), dump)
    assert "CheckpointAggregatorState" in error(
        Code.INVALID_ARGUMENT, CheckpointAggregator.load, bound(SUM), b"\xff"
    )
    aggregator = CheckpointAggregator(bound(SUM))
    error(Code.INVALID_ARGUMENT, aggregator.merge, CheckpointAggregator(bound(MEAN)))


def test_only_states_of_one_configuration_are_merged():
    """Also if their numbers would fit: another name is another tensor."""
    renamed = replace(SUM, outputs=tuple(replace(spec, name="other") for spec in SUM.outputs))
    pairs = [((SUM,), (renamed,)), ((SUM, renamed), (renamed, SUM)), ((SUM, MEAN), (SUM,))]
    for these, those in [*pairs, *[(those, these) for these, those in pairs]]:
        mine, other = CheckpointAggregator(bound(*these)), CheckpointAggregator(bound(*those))
        mine.accumulate(checkpoint())
        other.accumulate(checkpoint())
        before = mine.dump()
        assert "two configurations" in error(Code.INVALID_ARGUMENT, mine.merge, other)
        assert mine.dump() == before


@pytest.mark.parametrize("error_", [StatusError(Code.OUT_OF_RANGE, "planted"), ValueError()])
def test_a_merge_that_fails_half_way_leaves_nothing_that_could_be_reported(error_):
    plain = FACTORIES["median"]

    def make(intrinsic, options):
        accumulator = plain.make(intrinsic, options)

        def merge(other):
            raise error_

        accumulator.merge = merge
        return accumulator

    factories = {**FACTORIES, "median": replace(plain, make=make)}
    other = bound(SUM, MEAN, chosen={MEAN.uri: "median"}, factories=factories)
    one, two = CheckpointAggregator(other), CheckpointAggregator(other)
    for each in (one, two):
        each.accumulate(checkpoint())
    assert "the aggregator 'median' failed (merge)" in error(Code.DATA_LOSS, one.merge, two)
    error(Code.DATA_LOSS, one.report)
    alone = bound(MEAN, chosen={MEAN.uri: "median"}, factories=factories)
    one, two = CheckpointAggregator(alone), CheckpointAggregator(alone)
    for each in (one, two):
        each.accumulate(checkpoint())
    if isinstance(error_, StatusError):  # it was asked first, and has changed nothing
        error(Code.OUT_OF_RANGE, one.merge, two)
        assert one.num_inputs == 1


def test_intrinsics_that_disagree_on_the_number_of_inputs():
    one, two = CheckpointAggregator(bound(SUM)), CheckpointAggregator(bound(MEAN))
    one.accumulate(checkpoint())
    state = one.dump() + two.dump()
    torn = CheckpointAggregator.load(bound(SUM, MEAN), state)
    assert "[0, 1]" in error(Code.FAILED_PRECONDITION, lambda: torn.num_inputs)


def test_aggregators_are_chosen_by_name():
    (item,) = bound(MEAN, chosen={MEAN.uri: "median"}, options={"median": {"a": 1}})
    assert (item.factory.name, item.options) == ("median", {"a": 1})
    message = error(Code.INVALID_ARGUMENT, lambda: bound(MEAN, chosen={MEAN.uri: "federated_sum"}))
    assert "cannot serve it; these can: federated_weighted_mean, median, unweighted_mean" in message
    assert "'lost' is not installed" in error(
        Code.INVALID_ARGUMENT, lambda: bound(MEAN, chosen={MEAN.uri: "lost"})
    )
    assert "no installed one can" in error(Code.INVALID_ARGUMENT, lambda: bound(GROUPS.nested[0]))


def test_an_aggregator_that_reports_something_else_is_an_internal_error():
    sum_ = FACTORIES["federated_sum"]

    def make(intrinsic, options):
        accumulator = sum_.make(intrinsic, options)
        accumulator.report = lambda: answers.pop()
        return accumulator

    broken = AggregatorFactory("federated_sum", sum_.uris, "broken", make, sum_.load)
    for answer in ([], [np.zeros(3, "f4")], [np.zeros(2)], [np.zeros(2, "f4")] * 2):
        answers = [answer]
        aggregator = CheckpointAggregator(bound(SUM, factories={"federated_sum": broken}))
        error(Code.INTERNAL, aggregator.report)


def test_kept_contributions_are_bounded():
    items = bound(MEAN, SUM, chosen={MEAN.uri: "median"})
    budget = KeptBudget(30)
    aggregator = CheckpointAggregator(items, budget)
    # Each contribution is two floats and a weight: 12 bytes; the sum keeps nothing.
    aggregator.accumulate(checkpoint())
    aggregator.accumulate(checkpoint())
    before = aggregator.dump()
    assert "max_kept_bytes is 30" in error(
        Code.RESOURCE_EXHAUSTED, aggregator.accumulate, checkpoint()
    )
    assert aggregator.dump() == before
    error(Code.RESOURCE_EXHAUSTED, CheckpointAggregator.load, items, before, budget)


def test_an_empty_configuration_aggregates_nothing():
    aggregator = CheckpointAggregator(bind(parse_configuration(b""), FACTORIES, {}, {}))
    aggregator.accumulate(checkpoint())
    assert aggregator.report() == {}
