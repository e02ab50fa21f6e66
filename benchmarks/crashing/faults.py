"""What goes wrong in a run, and when: a list that can be written down, cut short and repeated."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.crashing.disk import FATES

#: The kinds of fault, and how likely each is.
KINDS = {
    "kill": 3,
    "stop": 1,
    "transaction": 6,
    "call": 5,
    "disk full": 1,
    "clock": 1,
    "cut off": 2,
    "link": 4,
    "pause": 1,
}
#: What may become of a device's call: it does not arrive, its answer does not, it comes twice.
CALLS = ("lost", "answer lost", "twice")
#: For how long things go wrong, in virtual seconds; then all must come to an end.
SPAN = 240.0
HOUR = 3600.0


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    :param at: in virtual seconds.
    :param kind: of :data:`KINDS`.
    :param details: what each kind needs: ``member``, ``seconds``, ``fate``, ``count``, ``other``
        (how many members on), ``after`` (so many messages).
    """

    at: float
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A run: everything else follows from it.

    :param seed: of all choices that are no faults.
    :param members: how many servers share the storage; 1: one that has it alone.
    :param late: whether devices that come too late are answered OK.
    :param releases: what becomes of the transactions that release a result with noise, one after
        the other; empty: results have none.
    """

    seed: int
    members: int
    late: bool
    faults: tuple[Fault, ...]
    releases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read it."""
        faults = tuple(Fault(**each) for each in data["faults"])
        releases = tuple(data.get("releases", ()))
        return cls(data["seed"], data["members"], data["late"], faults, releases)


def draw(seed: int, count: int) -> Plan:
    """Return the run of a seed.

    :param count: how many faults.
    """
    rng = random.Random(seed)
    members = rng.choice((1, 2, 3))
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=count)
    faults = [_fault(rng, kind, members) for kind in kinds]
    return Plan(seed, members, rng.random() < 0.5, tuple(sorted(faults, key=lambda f: f.at)))


def _fault(rng: random.Random, kind: str, members: int) -> Fault:
    at = round(rng.uniform(0.0, SPAN), 3)
    member = rng.randrange(members)
    if kind in ("kill", "stop"):
        return Fault(at, kind, {"member": member, "seconds": round(rng.uniform(0.1, 20.0), 3)})
    if kind == "transaction":
        fate = rng.choice(FATES)
        return Fault(at, kind, {"member": member, "fate": fate, "count": rng.randint(1, 3)})
    if kind == "call":
        return Fault(at, kind, {"fate": rng.choice(CALLS), "count": rng.randint(1, 4)})
    if kind == "disk full":
        return Fault(at, kind, {"seconds": round(rng.uniform(0.5, 30.0), 3)})
    if kind == "clock":
        # -1: the storage's own.
        by = rng.choice((-HOUR, HOUR))
        return Fault(at, kind, {"member": rng.randrange(-1, members), "by": by})
    if kind == "link":
        other, after = rng.randint(1, max(1, members - 1)), rng.choice((0, rng.randint(1, 60)))
        cut = rng.choice((0.0, round(rng.uniform(0.0, 20.0), 3)))
        return Fault(at, kind, {"member": member, "other": other, "after": after, "seconds": cut})
    return Fault(at, kind, {"member": member, "seconds": round(rng.uniform(0.5, 40.0), 3)})
