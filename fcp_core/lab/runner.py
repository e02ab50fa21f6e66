"""``simulate`` and ``sweep``: run scenarios with policies, here or on an engine."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fcp_core.aggregation.engine import Engine
from fcp_core.errors import UsageError
from fcp_core.lab.report import Report
from fcp_core.lab.scenario import Scenario
from fcp_core.lab.windows import Pacing
from fcp_core.lab.world import World
from fcp_core.rounds.policies import SelectionPolicy

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    :param policy: as for :func:`simulate`.
    :param label: what its report calls the policy; None: its name.
    """

    policy: str | SelectionPolicy
    scenario: Scenario = field(default_factory=Scenario)
    seed: int = 0
    label: str | None = None


def simulate(
    *policies: str | SelectionPolicy,
    scenario: Scenario | None = None,
    seed: int = 0,
    plugins: Plugins | None = None,
    pacing: Pacing | None = None,
) -> list[Report]:
    """Run a scenario with each policy, in virtual time; the same seed gives the same reports.

    :param policies: names of installed policies, with options of their own if wanted, as in
        ``"uniform:window=30s,min_candidates=50"``; or policies.
    :param scenario: what is played; the default one if None.
    :param seed: devices, their behaviour and the policies' randomness depend on it.
    :param plugins: where names are looked up; by default what is installed, with its defaults.
    :param pacing: says when devices come back, as a ``fcp_retry_window`` hook would; None: the
        scenario's retry windows hold.
    :returns: one report for each policy, in their order.
    :raises UsageError: if a policy is unknown or its options do not do.
    """
    scenario = Scenario() if scenario is None else scenario
    runs = [Run(policy, scenario, seed) for policy in policies]
    return sweep(runs, plugins=plugins, pacing=pacing)


def sweep(
    runs: Iterable[Run],
    *,
    plugins: Plugins | None = None,
    pacing: Pacing | None = None,
    engine: Engine | None = None,
) -> list[Report]:
    """Play each run, one after the other or on an engine; the reports are the same.

    :param plugins: as for :func:`simulate`, and so is *pacing*.
    :param engine: one that was started; None: here, one after the other.
    :returns: the reports, in the order of the runs.
    :raises UsageError: if a policy is unknown, its options do not do, or it cannot be sent to the
        engine's processes.
    """
    worlds = []
    for run in runs:
        policy, options = run.policy, {}
        name = policy if isinstance(policy, str) else type(policy).__name__
        if isinstance(policy, str):
            if plugins is None:
                plugins = _installed()
            short, given = parse_policy(policy)
            policy = plugins.make_selection_policy(short, given)
            options = dict(plugins.selection_chain(short, given)[0][1])
        label = name if run.label is None else run.label
        worlds.append((run.scenario, label, policy, options, run.seed, pacing))
    if engine is None:
        return [World(*world).run() for world in worlds]
    jobs = [_pickled(world) for world in worlds]
    futures = [engine.run(f"{__name__}:play", job) for job in jobs]
    try:
        return [pickle.loads(future.result()) for future in futures]
    finally:
        for future in futures:
            future.cancel()


def play(arguments: bytes) -> bytes:
    """Play one run: the job of :func:`sweep`, whose pickled report it returns."""
    return pickle.dumps(World(*pickle.loads(arguments)).run())


def _pickled(world: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(world)
    except Exception as error:
        raise UsageError(
            f"the policy {world[1]} cannot be sent to other processes ({error}); only what an "
            "installed distribution brings can."
        ) from error


def parse_policy(text: str) -> tuple[str, Mapping[str, Any]]:
    """Split ``NAME:OPTION=VALUE,OPTION=VALUE``.

    :raises UsageError: if it is not of that form.
    """
    name, _, rest = text.partition(":")
    options = {}
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals or not option.strip():
            raise UsageError(f"{text!r} is not of the form NAME:OPTION=VALUE,OPTION=VALUE.")
        options[option.strip()] = value.strip()
    return name, options


def _installed() -> Plugins:
    from fcp_core.plugins.manager import Plugins

    return Plugins.load(environ={})
