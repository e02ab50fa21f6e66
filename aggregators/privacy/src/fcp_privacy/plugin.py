"""The plugin: the aggregators with noise, and the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import click

from fcp_core.aggregation.aggregator import AggregatorFactory, Options
from fcp_core.aggregation.configuration import DP_BUNDLE_URI, DP_DISTINCT_URI, DP_GROUP_BY_URI
from fcp_core.aggregation.group_by import DEFAULT_MAX_GROUPS, MAX_BYTES, MAX_GROUPS
from fcp_core.aggregation.release import Resumed
from fcp_core.plugins import hookimpl
from fcp_core.plugins.config import Config, OptionRegistry
from fcp_core.rounds.ledger import Ledger
from fcp_core.rounds.tasks import TaskSpec
from fcp_privacy import commands, distinct, group_by, percentile, policy, watermark
from fcp_privacy.clipped import ClippedSums
from fcp_privacy.correlated import Matrix, Tree, resume_series
from fcp_privacy.gaussian import AdaptiveClip, FixedClip, resume_clip
from fcp_privacy.group_by_plan import ALLOW_NO_NOISE
from fcp_privacy.ledger import PrivacyLedger
from fcp_privacy.vectors import URIS

logger = logging.getLogger(__name__)

#: The eligibility policy with which devices keep their distance.
_SEPARATION = "minimum_separation"


def _factory(
    name: str,
    accumulator: type[ClippedSums],
    summary: str,
    resume: Callable[[Options, bytes | None], Resumed] | None = None,
) -> AggregatorFactory:
    return AggregatorFactory(
        name,
        URIS,
        summary,
        # Methods of a class can be sent to other processes, as lambdas cannot.
        accumulator.make,
        accumulator.load,
        joint=True,
        randomised=True,
        resume=resume,
    )


GAUSSIAN = _factory("dp_gaussian", FixedClip, "clipped sums and means with Gaussian noise")
ADAPTIVE = _factory(
    "dp_gaussian_adaptive",
    AdaptiveClip,
    "the same, with a clip that follows a quantile of the norms",
    resume_clip,
)
TREE = _factory(
    "dp_tree",
    Tree,
    "sums and means of DP-FTRL, with the noise of a tree over the rounds",
    resume_series,
)
MATRIX = _factory(
    "dp_matrix",
    Matrix,
    "the same, with the noise of a matrix (BLT): the least for the same cost",
    resume_series,
)

FACTORIES = (GAUSSIAN, ADAPTIVE, TREE, MATRIX)


class PrivacyPlugin:
    """The plugin of one server."""

    def __init__(self) -> None:
        self._config: Config | None = None

    @hookimpl
    def fcp_add_options(self, options: OptionRegistry) -> None:
        """Declare the options."""
        policy.add_options(options)
        for uri in (DP_GROUP_BY_URI, DP_BUNDLE_URI):
            options.add(
                f"aggregator.{uri}",
                ALLOW_NO_NOISE,
                type="bool",
                default=False,
                help="let a task ask for no noise at all, by an epsilon of 1e20 or more",
                operator_only=True,
            )
        for uri in (DP_GROUP_BY_URI, DP_DISTINCT_URI):
            options.add(
                f"aggregator.{uri}",
                MAX_GROUPS,
                type="int",
                default=DEFAULT_MAX_GROUPS,
                help="how many groups there may be: the task ends with what it has; "
                "0: as many as come",
                minimum=0,
            )
            options.add(
                f"aggregator.{uri}",
                MAX_BYTES,
                type="bytes",
                default="1GiB",
                help="how much memory the groups may take, estimated; 0: as much as they take",
                minimum=0,
            )
        for factory in FACTORIES:
            _add_options(options, f"aggregator.{factory.name}", factory)

    @hookimpl
    def fcp_register_aggregators(self, config: Config) -> list[AggregatorFactory]:
        """Offer the aggregators."""
        self._config = config
        return [*FACTORIES, group_by.DP_GROUP_BY, percentile.BUNDLE, distinct.DISTINCT]

    @hookimpl
    def fcp_register_ledgers(self, config: Config) -> list[Ledger]:
        """Offer the ledger."""
        return [PrivacyLedger(config)]

    @hookimpl
    def fcp_register_commands(self) -> list[click.Command]:
        """Offer ``fcp privacy``."""
        return [commands.privacy]

    @hookimpl
    def fcp_startup(self, config: Config) -> None:
        """Refuse a watermark that cannot be written, and warn of a budget that is forgotten."""
        ledger = PrivacyLedger(config)
        populations = ("", *config.scopes("population"))
        for population in populations:
            watermark.check(ledger.policy(population).watermark)
        if config.get("storage") == "memory" and any(
            ledger.policy(population).bounded for population in populations
        ):
            logger.warning(
                "there is a privacy budget, and the storage memory forgets with the process what "
                "was spent of it: take one that lasts, such as storage = sqlite"
            )

    @hookimpl
    def fcp_check_task(self, task: TaskSpec) -> list[str]:
        """Refuse what the analysis does not hold for."""
        assert self._config is not None  # the registration comes before any task
        config = self._config.scoped(task.population, task.name)
        chosen = {*config.get("aggregator"), *task.aggregators.values()}
        used = sorted(chosen & {factory.name for factory in FACTORIES})
        protocol = task.protocol or config.get("protocol")
        problems = []
        if used and protocol != "simple":
            problems.append(
                f"{', '.join(used)} clip each contribution, and under the protocol {protocol!r} "
                "the server sees sums of many: use the protocol simple."
            )
        for name in {TREE.name, MATRIX.name} & chosen:
            wanted = config.section(f"aggregator.{name}", task.options.get(name))["separation"]
            kept = 0
            if _SEPARATION in {*config.get("eligibility"), *task.eligibility}:
                options = task.options.get(_SEPARATION)
                section = config.section(f"eligibility.{_SEPARATION}", options)
                kept = int(section["minimum_separation"])
            # A device that sits out n rounds comes again after n + 1.
            if wanted > kept + 1:
                problems.append(
                    f"{name} counts on devices that come again after {wanted} rounds at the "
                    f"earliest, and nothing asks them to: add the eligibility policy {_SEPARATION} "
                    f"with minimum_separation = {wanted - 1} and the round's current_index, or set "
                    "separation = 1."
                )
        return problems


def _add_options(options: OptionRegistry, section: str, factory: AggregatorFactory) -> None:
    def add(name: str, type: str, default: Any, help: str, least: float | None = 0) -> None:
        options.add(section, name, type, default, help, minimum=least)

    text = "the noise's standard deviation, divided by the largest norm of a contribution"
    add("noise_multiplier", "float", None, text)
    add("clients", "int", 0, "what means are divided by; 0: how many the task is to have")
    if factory is ADAPTIVE:
        add("initial_clip", "float", 0.1, "the largest norm in the first round")
        add("quantile", "float", 0.5, "the part of the contributions that is to be within the clip")
        add("clip_learning_rate", "float", 0.2, "how fast the clip follows")
        text = "the standard deviation of the noise of how many were within; not set: clients / 20"
        add("clipped_count_stddev", "float", None, text)
        add(
            "clip_tensor",
            "str",
            "",
            "the tensor of the checkpoint that tells devices the clip",
            None,
        )
    else:
        add("clip", "float", None, "the largest norm of a contribution, over all its tensors")
    if factory is GAUSSIAN:
        text = "what a result costs at delta, instead of a noise multiplier"
        add("epsilon", "float", None, text)
        add("delta", "float", 1e-6, "the delta of epsilon")
        text = (
            "NAME=FACTOR of outputs that are multiplied before the clip and divided after the "
            "noise, so that those of other sizes have their part of one norm"
        )
        add("scales", "list", (), text, None)
    else:
        add(
            "series", "str", "", "the tasks that go on with one another; not set: of one name", None
        )
    if factory in (TREE, MATRIX):
        add("separation", "int", 1, "after how many rounds a device comes again at the earliest", 1)
        add("rounds", "int", None, "how many rounds the series has at most", 1)
    if factory is TREE:
        add("restart_every", "int", 0, "after how many rounds a new tree begins; 0: never")
    if factory is MATRIX:
        add("buffers", "int", 4, "vectors that are kept from round to round; more is less noise", 1)
