"""``simulate``: run a scenario with one policy after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcp_core.errors import UsageError
from fcp_core.lab.report import Report
from fcp_core.lab.scenario import Scenario
from fcp_core.lab.windows import Pacing
from fcp_core.lab.world import World
from fcp_core.rounds.policies import SelectionPolicy

if TYPE_CHECKING:
    from fcp_core.plugins.manager import Plugins


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
    worlds = []
    for policy in policies:
        name, options = str(policy), {}
        made: SelectionPolicy
        if isinstance(policy, str):
            if plugins is None:
                plugins = _installed()
            short, given = parse_policy(policy)
            made = plugins.make_selection_policy(short, given)
            options = dict(plugins.selection_chain(short, given)[0][1])
        else:
            name, made = type(policy).__name__, policy
        worlds.append((name, made, options))
    return [
        World(scenario, name, made, options, seed, pacing).run() for name, made, options in worlds
    ]


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
