"""TFF's aggregators with noise, found in a computation that is lowered.

``tff.aggregators.DifferentiallyPrivateFactory`` keeps clip, noise and divisor in its state, so a
context finds them there by name. It can say what a round costs, and it can have the server draw the
noise: then the program's own is taken out of the state that a round begins with, devices clip as
always, and the task names an aggregator with the same clip and the same noise.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcp_core.rounds.tasks import TaskSpec
from fcp_platform.graphs import LocalGraph
from fcp_platform.lowering import Lowered

#: Who draws the noise of TFF's aggregators.
PROGRAM, SERVER = "program", "server"

_SUM = "federated_sum"
#: The steps of an aggregator's state that say how it clips, by what we call it.
_CLIPS = {
    "gaussian_fixed": ("l2_norm_clip", "stddev"),
    "gaussian_adaptive": ("sum_state/l2_norm_clip", "sum_state/stddev"),
    "tree_aggregation": ("clip_value", "tree_state/value_generator_state/stddev"),
}
_COUNT = "quantile_estimator_state/below_estimate_state/numerator_state"
#: What one device adds to the count of updates that were within the clip: half a point.
_HALF = 0.5


@dataclass(frozen=True)
class Drawn:
    """What a round is to be like whose noise the server draws.

    :param state: the state to begin with.
    :param kept: what the new state has from the old one, whatever the round has made of it.
    :param task: fields of the task.
    """

    state: Mapping[str, Any]
    kept: Mapping[str, Any]
    task: Mapping[str, Any]


@dataclass(frozen=True)
class Mechanism:
    """One of TFF's aggregators with noise.

    :param kind: the method of ``DifferentiallyPrivateFactory`` that makes such a one.
    :param root: the name of its state, with a slash at the end.
    :param query: the name of the part that says how it clips.
    :param sums: the names of the outputs that are sums of what it clips.
    :param others: the names of outputs that are not.
    """

    kind: str
    root: str
    query: str
    sums: Sequence[str] = field(default_factory=list)
    others: Sequence[str] = field(default_factory=list)

    def cost(self, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what a round costs, as an event of the ledger; None if that is not known here.

        :param state: the state's leaves by name.
        """
        if self.kind == "tree_aggregation" or self.others:
            return None
        multiplier = self._multiplier(state)
        return {"type": "gaussian", "noise_multiplier": multiplier} if multiplier else None

    def drawn_by_server(self, state: Mapping[str, Any]) -> Drawn:
        """Return how a round goes whose noise the server draws.

        :raises ValueError: if there is no noise.
        """
        clip, stddev = (float(state[self.query + name]) for name in _CLIPS[self.kind])
        if not (multiplier := self._multiplier(state)):
            raise ValueError("dp='server': the aggregator's noise multiplier is 0; there is none")
        if self.kind == "tree_aggregation":
            tree = {"clip": clip, "noise_multiplier": multiplier}
            return self._without_noise(state, "dp_tree", tree)
        options: dict[str, Any] = {"clip": clip, "noise_multiplier": multiplier}
        if self.kind == "gaussian_adaptive":
            # Sums and count become one vector with noise of one size: the scale of the count makes
            # its noise as large as the sums', and so its part of the norm smaller or larger.
            scale = stddev / float(state[self.query + _COUNT + "/stddev"])
            options["clip"] = math.hypot(clip, scale * _HALF)
            options["scales"] = [f"{name}={scale!r}" for name in self.sums if _is_count(name)]
        return self._without_noise(state, "dp_gaussian", options)

    def _multiplier(self, state: Mapping[str, Any]) -> float:
        """Return the noise multiplier of a round as a whole; 0 if there is no noise."""
        clip, stddev = (float(state[self.query + name]) for name in _CLIPS[self.kind])
        if not (0 < clip < math.inf and 0 < stddev < math.inf):
            return 0.0
        if self.kind != "gaussian_adaptive":
            return stddev / clip
        count = float(state[self.query + _COUNT + "/stddev"])
        return 1 / math.hypot(clip / stddev, _HALF / count) if count > 0 else 0.0

    def _without_noise(
        self, state: Mapping[str, Any], aggregator: str, options: Mapping[str, Any]
    ) -> Drawn:
        quiet, kept = dict(state), {}
        for name, value in state.items():
            if name.startswith(f"{self.root}dp_event/"):
                kept[name] = value
            elif name.startswith(self.query) and self._is_noise(name.removeprefix(self.query)):
                kept[name] = value
                if np.asarray(value).dtype.kind == "f":
                    quiet[name] = np.zeros_like(value)
        # With an adaptive clip the next standard deviation follows from the next clip.
        kept.pop(self.query + "sum_state/stddev", None)
        return Drawn(
            quiet, kept, {"aggregators": {_SUM: aggregator}, "options": {aggregator: options}}
        )

    def _is_noise(self, step: str) -> bool:
        return step.endswith("stddev") or step.startswith(("tree_state/", "previous_tree_noise"))


def arranged(lowered: Lowered, state: Mapping[str, Any], dp: str, template: TaskSpec) -> Drawn:
    """Return how a round goes: its state, and what its task has more than the others.

    :param dp: who draws the noise, :data:`PROGRAM` or :data:`SERVER`.
    :param template: what all tasks of the program have.
    :raises ValueError: if the server cannot draw it.
    """
    if dp == SERVER:
        drawn = the_one(lowered).drawn_by_server(state)
        (aggregator,) = drawn.task["options"]
        more = template.options.get(aggregator, {})
        return dataclasses.replace(
            drawn,
            task={
                "aggregators": {**template.aggregators, **drawn.task["aggregators"]},
                "options": {
                    **template.options,
                    aggregator: {**more, **drawn.task["options"][aggregator]},
                },
            },
        )
    costs = list(template.costs)
    if not costs:
        stated = [one.cost(state) if one.kind else None for one in find(lowered)]
        costs = [cost for cost in stated if cost is not None]
    return Drawn(state, {}, {"costs": costs})


def find(lowered: Lowered) -> list[Mechanism]:
    """Return TFF's aggregators with noise that a computation has in its state.

    One whose parameters are not where they are known to be has the kind ``""``.
    """
    names = [port.leaf.name for port in lowered.prepare.inputs]
    found = []
    for name in names:
        root, is_one, _ = name.rpartition("is_init_state")
        if not (is_one and any(other.startswith(f"{root}dp_event/") for other in names)):
            continue
        query = f"{root}query_state/"
        while not any(query + clip in names for clip, _ in _CLIPS.values()) and any(
            other.startswith(f"{query}numerator_state/") for other in names
        ):
            query += "numerator_state/"
        kind = ""
        for known, steps in _CLIPS.items():
            if all(query + step in names for step in steps):
                kind = known
        sums, others = _sums(lowered, root, query)
        found.append(Mechanism(kind, root, query, sums, others))
    return found


def the_one(lowered: Lowered) -> Mechanism:
    """Return the aggregator whose noise the server can draw.

    :raises ValueError: if there is none, or more than that one has its results released.
    """
    found = find(lowered)
    if len(found) != 1 or not found[0].kind:
        which = "several" if len(found) > 1 else "one of another kind" if found else "none"
        raise ValueError(
            "dp='server' is for a computation with one tff.aggregators."
            "DifferentiallyPrivateFactory in its state, of gaussian_fixed, gaussian_adaptive or "
            f"tree_aggregation; this one has {which}. Leave dp out, and state the costs"
        )
    if found[0].others:
        raise ValueError(
            "dp='server': beside what is clipped the computation aggregates "
            f"{', '.join(found[0].others)}. All that a device sends has one norm together, and "
            "nothing may be released without noise: return no metrics of the devices (and no "
            "count of zeroed ones: dp_aggregator(zeroing=False)), or leave dp out"
        )
    return found[0]


def _sums(lowered: Lowered, root: str, query: str) -> tuple[list[str], list[str]]:
    """Return the outputs that are sums of what is clipped, and all others.

    What is clipped depends, on the device, on a clip that comes from the aggregator's state.
    """
    clips = [
        port
        for port in lowered.prepare.inputs
        if port.leaf.name.startswith(query) and port.leaf.name.endswith(("_clip", "clip_value"))
    ]
    sent = _reached(lowered.prepare, [port.tensor_name for port in clips])
    told = {leaf.name for leaf, source in lowered.broadcast.items() if source in sent}
    inputs = [port.tensor_name for port in lowered.client.inputs if port.leaf.name in told]
    clipped = _reached(lowered.client, inputs)
    sums: list[str] = []
    others: list[str] = []
    for config in lowered.aggregations.configs:
        given = {argument.input_tensor.name for argument in config.intrinsic_args}
        known = config.intrinsic_uri == _SUM and given <= clipped
        (sums if known else others).extend(spec.name for spec in config.output_tensors)
    return sums, others


def _reached(graph: LocalGraph, tensors: Sequence[str]) -> set[str]:
    """Return the names of the outputs of a graph that depend on some of its tensors."""
    users: dict[str, list[str]] = collections.defaultdict(list)
    for node in graph.graph_def.node:
        for source in node.input:
            users[_node(source)].append(node.name)
    ahead = [_node(tensor) for tensor in tensors]
    seen = set(ahead)
    while ahead:
        new = set(users[ahead.pop()]) - seen
        seen |= new
        ahead += new
    return {port.leaf.name for port in graph.outputs if _node(port.tensor_name) in seen}


def _node(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _is_count(name: str) -> bool:
    return name.endswith("/quantile_estimator_state")
