"""``fedsql_group_by``: sums, extrema and sketches for each distinct key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fcp_aggregators.group_sketches import (
    DISTINCT_URI,
    QUANTILE_URI,
    DistinctColumn,
    QuantileColumn,
)
from fcp_core.aggregation.aggregator import AggregatorFactory, Options
from fcp_core.aggregation.configuration import GROUP_BY_URI
from fcp_core.aggregation.group_by import GroupByAccumulator
from fcp_core.aggregation.group_columns import (
    MAX_URI,
    MIN_URI,
    SUM_URI,
    Column,
    ExtremumColumn,
    SumColumn,
)
from fcp_core.aggregation.spec import Intrinsic


class GroupBy(GroupByAccumulator):
    """A group-by that nests all columns that there are."""

    columns: ClassVar[Mapping[str, type[Column]]] = {
        SUM_URI: SumColumn,
        MIN_URI: ExtremumColumn,
        MAX_URI: ExtremumColumn,
        QUANTILE_URI: QuantileColumn,
        DISTINCT_URI: DistinctColumn,
    }


def make_lone(intrinsic: Intrinsic, options: Options) -> GroupBy:
    """Make the group-by without keys that a lone column stands for."""
    return GroupBy(Intrinsic(GROUP_BY_URI, nested=(intrinsic,)), options)


def load_lone(intrinsic: Intrinsic, options: Options, data: bytes) -> GroupBy:
    """Rebuild the group-by without keys that a lone column stands for."""
    return GroupBy.load(Intrinsic(GROUP_BY_URI, nested=(intrinsic,)), options, data)


def _nested(uri: str, summary: str) -> AggregatorFactory:
    return AggregatorFactory(
        uri,
        frozenset({uri}),
        f"{summary}, inside a group-by",
        make_lone,
        load_lone,
        nested_only=True,
    )


FACTORIES = (
    AggregatorFactory(
        GROUP_BY_URI,
        frozenset({GROUP_BY_URI}),
        "sums and other columns by key, as SQL's GROUP BY",
        GroupBy,
        GroupBy.load,
    ),
    _nested(SUM_URI, "sum of a column"),
    _nested(MIN_URI, "least value of a column"),
    _nested(MAX_URI, "greatest value of a column"),
    _nested(QUANTILE_URI, "approximate quantile of a column"),
    _nested(DISTINCT_URI, "approximate count of the distinct values of a column"),
)
