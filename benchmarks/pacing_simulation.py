"""Pace steering in virtual time: a diurnal population and an outage of hours.

Each device is awake for a stretch of the night and a shorter one of the day, at hours of its own,
some devices always; four times as many are awake at the peak as at the trough. A device comes when
its retry window says so, or as soon after as it is awake. While the server cannot be reached, it
tries again after 15 minutes, 20 % more or less, as the published client does. What the server knows
and answers is the real thing: the account of ``fcp_core.rounds.pacing`` and the policy of
``fcp_plugins.pacing_adaptive``, asked once for every few devices of a minute.

    python benchmarks/pacing_simulation.py --svg docs/images/pacing.svg
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fcp_core.lab.charts import Band, Lines, page
from fcp_core.rounds.pacing import Pace
from fcp_core.rounds.policies import RetryWindow
from fcp_plugins.pacing_adaptive import choose_window

DAY = 86400.0
MINUTE = 60.0
Array = Any


@dataclass
class Population:
    """Devices and the hours at which they are awake, in seconds of the day."""

    rng: np.random.Generator
    devices: int
    always: Array = field(init=False)
    spans: list[tuple[Array, Array]] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the devices' habits."""
        rng, n = self.rng, self.devices
        self.always = rng.random(n) < 0.15
        self.spans = [
            (rng.normal(22.5, 2.0, n) * 3600 % DAY, rng.uniform(6, 9, n) * 3600),
            (rng.uniform(0, 24, n) * 3600, rng.uniform(1, 3, n) * 3600),
        ]

    def awake(self, which: Array, when: Array) -> Array:
        """Return when devices that are due at *when* come."""
        since = [(when - start[which]) % DAY for start, _ in self.spans]
        asleep = ~self.always[which]
        for (_, length), passed in zip(self.spans, since, strict=True):
            asleep &= passed >= length[which]
        wait = DAY - np.maximum(*since)[asleep]
        come = when.copy()
        come[asleep] += wait + self.rng.uniform(0, 600, len(wait))
        return come

    def share_awake(self, when: float) -> float:
        """Return the share of devices that are awake."""
        everybody = np.arange(self.devices)
        return float((self.awake(everybody, np.full(self.devices, when)) == when).mean())


@dataclass
class Run:
    """What a simulation yields, minute by minute.

    :param rate: check-ins a second that reached the server.
    :param size: the server's estimate of the population, hour by hour.
    """

    rate: Array
    size: list[float]


def simulate(
    *,
    devices: int,
    rate: float,
    days: float,
    outage: tuple[float, float],
    seed: int = 1,
    forget: bool = False,
    together: int = 100,
    options: dict[str, Any] | None = None,
) -> Run:
    """Simulate a population that the server knows nothing of at first.

    :param rate: the check-ins a second to aim for.
    :param outage: when it begins and ends, in seconds.
    :param forget: whether the server loses its account in the outage.
    :param together: how many devices of a minute get one answer, to save time.
    """
    rng = np.random.default_rng(seed)
    people = Population(rng, devices)
    settings = {"target_rate": rate, **(options or {})}
    pace = Pace()
    minutes = int(days * 1440)
    came = np.zeros(minutes)
    sizes = []
    due = people.awake(np.arange(devices), rng.uniform(0, devices / rate, devices))
    for minute in range(minutes):
        start = minute * MINUTE
        now = np.flatnonzero(due < start + MINUTE)
        if outage[0] <= start < outage[1]:
            again = np.maximum(due[now], start) + 900 * rng.uniform(0.8, 1.2, len(now))
            due[now] = people.awake(now, again)
            if forget:
                pace = Pace()
            continue
        now = now[np.argsort(due[now])]
        came[minute] = len(now)
        for first in range(0, len(now), together):
            group = now[first : first + together]
            at = max(float(due[group[0]]), start)
            pace.came(at, len(group))
            load = {"pace": pace, "needs": 0.0, "population_size": pace.population_size(at)}
            window = choose_window(load, settings, at)
            pace.handed_out(window, at, len(group))
            due[group] = people.awake(group, at + _draw(rng, window, len(group)))
        if minute % 60 == 59:
            sizes.append(pace.population_size(start + MINUTE))
    return Run(came / MINUTE, sizes)


def _draw(rng: np.random.Generator, window: RetryWindow, number: int) -> Array:
    return rng.uniform(window.delay_min, window.delay_max, number)


def judged(run: Run, outage: tuple[float, float], learning: float, drain: float) -> Array:
    """Return the minutes' rates but for the learning, the outage and the client's own retries.

    :param learning: seconds at the start that do not count.
    :param drain: seconds after the outage for which the devices' own retries rule the rate.
    """
    start = np.arange(len(run.rate)) * MINUTE
    counts = (start >= learning) & ~((start >= outage[0]) & (start < outage[1] + drain))
    return run.rate[counts]


def plot(path: Path, run: Run, rate: float, outage: tuple[float, float]) -> None:
    """Write a picture of a run: the rate a minute against the hours."""
    hours = len(run.rate) / 60
    panel = Lines(
        f"Check-ins by the minute; peak after the outage: {run.rate.max():.0f}",
        "hours",
        "check-ins a second",
        [("rate", [(minute / 60, float(value)) for minute, value in enumerate(run.rate)])],
        hours,
        bands=(
            Band("#dcefdc", y=(0.8 * rate, 1.2 * rate), label="target ± 20 %"),
            Band("#f3dcdc", x=(outage[0] / 3600, outage[1] / 3600), label="server down"),
        ),
        y_limit=2 * rate,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page("Pacing", ["check-ins"], [panel]), encoding="utf-8")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=100.0, help="check-ins a second")
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--outage-hours", type=float, default=4.0)
    parser.add_argument("--forget", action="store_true", help="lose the account in the outage")
    parser.add_argument("--svg", type=Path, help="where to write the picture")
    given = parser.parse_args()
    outage = (DAY + 20 * 3600, DAY + (20 + given.outage_hours) * 3600)
    people = Population(np.random.default_rng(1), min(given.devices, 100_000))
    shares = [people.share_awake(hour * 3600.0) for hour in range(24)]
    print(f"{given.devices} devices; awake: {min(shares):.0%} to {max(shares):.0%} of them")
    started = time.perf_counter()
    run = simulate(
        devices=given.devices,
        rate=given.rate,
        days=given.days,
        outage=outage,
        forget=given.forget,
    )
    seconds = time.perf_counter() - started
    normal = judged(run, outage, learning=12 * 3600, drain=2400) / given.rate
    first = run.rate[: 12 * 60] / given.rate
    end = int(outage[1] // MINUTE)
    drain, later = run.rate[end : end + 40], run.rate[end + 40 :]
    within = float((abs(normal - 1) <= 0.2).mean())
    print(f"rate, of the target, by the minute: {normal.min():.2f} to {normal.max():.2f}")
    print(f"minutes within 20 % of the target: {within:.2%} of {len(normal)}")
    print(f"first 12 hours, with nothing known: {first.min():.2f} to {first.max():.2f}")
    print(
        f"after {given.outage_hours:g} h of outage: {drain.max() / given.rate:.2f} in the first "
        f"40 minutes (devices that try again by themselves), {later.max() / given.rate:.2f} after"
    )
    size = np.array(run.size[12:])
    print(f"population estimated: {size.min():.0f} to {size.max():.0f}")
    print(f"{seconds:.1f} s for {given.days:g} days and {run.rate.sum() * MINUTE:.0f} check-ins")
    if given.svg:
        plot(given.svg, run, given.rate, outage)
        print(f"{given.svg} written")


if __name__ == "__main__":
    main()
