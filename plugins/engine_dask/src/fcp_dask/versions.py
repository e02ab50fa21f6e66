"""Checks that the workers of a cluster have what the server has."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

#: What must be the same to the letter; what plugins need is added.
_SAME = ("fcp-server", "dask", "distributed")


def distributions_of(things: Iterable[object]) -> list[str]:
    """Return the distributions, by name, of the plugins that functions or instances come from."""
    # Not packages_distributions(): it looks at every file that is installed, for seconds.
    points = importlib.metadata.entry_points(group="fcp")
    owners = {point.module.partition(".")[0]: point.dist.name for point in points if point.dist}
    modules = {getattr(thing, "__module__", "").partition(".")[0] for thing in things}
    return sorted({*_SAME, *(owners[module] for module in modules & owners.keys())})


def mismatches(
    mine: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], same: Iterable[str]
) -> list[str]:
    """Return what workers have otherwise than the server, a sentence for each difference.

    Python must agree in its second number and NumPy in its first, since arrays are pickled.

    :param mine: versions by package, "python" among them; None: it is not installed.
    :param others: the same of each worker, by its address.
    """
    problems: dict[str, list[str]] = {}
    for address, theirs in sorted(others.items()):
        for name in ("python", "numpy", *same):
            here, there = mine.get(name), theirs.get(name)
            # What is not installed here comes from a path: nothing is known of it.
            if here is None or _relevant(name, here) == _relevant(name, there):
                continue
            has = "lacks it" if there is None else f"has {_short(name, there)}"
            problem = f"{name}: this server has {_short(name, here)}, {{}} {has}"
            problems.setdefault(problem, []).append(address)
    return [
        problem.format(f"the worker {addresses[0]}")
        if len(addresses) == 1
        else problem.format(f"each of {len(addresses)} workers ({addresses[0]}, ...)")
        for problem, addresses in problems.items()
    ]


def _relevant(name: str, version: str | None) -> object:
    if version is None or name not in ("python", "numpy"):
        return version
    return version.split(".")[: 2 if name == "python" else 1]


def _short(name: str, version: str) -> str:
    # Python's has five parts.
    return ".".join(version.split(".")[:3]) if name == "python" else version
