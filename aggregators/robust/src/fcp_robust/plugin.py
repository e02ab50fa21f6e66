"""The plugin: what it offers, its options, and which tasks it warns of."""

from __future__ import annotations

from typing import Any, Protocol

from fcp_core.aggregation.aggregator import Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.spec import Intrinsic
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.rounds.tasks import TaskSpec
from fcp_robust.clipping import NormClipping
from fcp_robust.coordinates import CoordinateMedian, TrimmedMean
from fcp_robust.distances import GeometricMedian, Krum, MultiKrum, minimum
from fcp_robust.updates import MEANS


class _AccumulatorType(Protocol):
    def __call__(self, intrinsic: Intrinsic, options: Options) -> Accumulator: ...

    def load(self, intrinsic: Intrinsic, options: Options, data: bytes) -> Accumulator: ...


def _factory(
    name: str, accumulator: _AccumulatorType, summary: str, keeps: bool = True, joint: bool = True
) -> AggregatorFactory:
    return AggregatorFactory(
        name,
        MEANS,
        summary,
        # Methods of a class can be sent to other processes, as lambdas cannot.
        accumulator,
        accumulator.load,
        needs_all_inputs=keeps,
        joint=joint,
    )


COORDINATE_MEDIAN = _factory(
    "coordinate_median",
    CoordinateMedian,
    "median of each coordinate; refuses NaN and infinity",
    joint=False,
)
TRIMMED_MEAN = _factory(
    "trimmed_mean",
    TrimmedMean,
    "mean of each coordinate without its smallest and largest values",
    joint=False,
)
GEOMETRIC_MEDIAN = _factory(
    "geometric_median",
    GeometricMedian,
    "the point with the smallest sum of distances to all updates",
)
KRUM = _factory("krum", Krum, "the one update that lies closest to its neighbours")
MULTI_KRUM = _factory(
    "multi_krum", MultiKrum, "mean of the updates that lie closest to their neighbours"
)
NORM_CLIPPING = _factory(
    "norm_clipping",
    NormClipping,
    "weighted mean of updates that are scaled down to a norm",
    keeps=False,
)

FACTORIES = (
    COORDINATE_MEDIAN,
    TRIMMED_MEAN,
    GEOMETRIC_MEDIAN,
    KRUM,
    MULTI_KRUM,
    NORM_CLIPPING,
)


class RobustPlugin:
    """The plugin of one server."""

    def __init__(self) -> None:
        self._config: Config | None = None

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the aggregators' options."""

        def add(name: str, option: str, kind: str, default: Any, text: str, least: float) -> None:
            options.add(f"aggregator.{name}", option, kind, default, text, minimum=least)

        add(
            "trimmed_mean",
            "fraction",
            "float",
            0.1,
            "the part of the values that is left out at each end; below 0.5",
            0,
        )
        add("geometric_median", "iterations", "int", 100, "how many steps it takes at most", 1)
        add("geometric_median", "tolerance", "float", 1e-6, "the relative step it stops at", 0)
        add(
            "geometric_median",
            "smoothing",
            "float",
            1e-6,
            "smaller distances to an update count as this one",
            1e-12,
        )
        for name in ("krum", "multi_krum"):
            add(name, "byzantine", "int", 1, "how many contributions of a round may be hostile", 0)
        add("multi_krum", "selected", "int", 0, "how many are averaged; 0: all but the hostile", 0)
        add("norm_clipping", "norm", "float", 1.0, "the largest norm of an update", 1e-12)

    @hookimpl
    def fcp_register_aggregators(self, config: Config) -> list[AggregatorFactory]:
        """Offer the aggregators."""
        self._config = config
        for view in (config, *(config.scoped(name) for name in config.scopes("population"))):
            fraction = view.section("aggregator.trimmed_mean")["fraction"]
            if not fraction < 0.5:
                raise UsageError(
                    f"{view.origin('aggregator.trimmed_mean', 'fraction')}: {fraction:g} is not "
                    "below 0.5; that would leave nothing to average"
                )
        return list(FACTORIES)

    @hookimpl
    def fcp_check_task(self, task: TaskSpec) -> list[str]:
        """Refuse a task whose round could end with too few contributions for Krum."""
        assert self._config is not None  # the registration comes before any task
        config = self._config.scoped(task.population, task.name)
        chosen = {*config.get("aggregator"), *task.aggregators.values()}
        fewest = task.goal_count if task.minimum_count is None else task.minimum_count
        problems = []
        for name in ("krum", "multi_krum"):
            if name in chosen:
                options = config.section(f"aggregator.{name}", task.options.get(name))
                needed = minimum(options["byzantine"])
                if fewest < needed:
                    problems.append(
                        f"{name} with byzantine = {options['byzantine']} needs {needed} "
                        f"contributions; the task may end with {fewest}."
                    )
        return problems
