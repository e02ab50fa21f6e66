"""The virtual devices: when they are awake, what they hold, how fast and how reliable they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fcp_core.errors import UsageError
from fcp_core.lab.draws import Draws, Floats, Ints, Purpose
from fcp_core.rounds.policies import RetryWindow

DAY = 86400.0

#: Over how much time the devices that are awake at the start first check in, in seconds.
_FIRST_HOURS = 3600.0


@dataclass(frozen=True)
class DeviceModel:
    """What a population is like. Times are in seconds, hours of the day in hours of local time.

    A device is available once a day, in a window of its own; some are available all the time.

    :param count: how many devices there are.
    :param zones: offsets from UTC in hours, with the shares of devices that live there.
    :param night_start: mean and standard deviation of the hour at which a window begins.
    :param night_length: mean and standard deviation of its length in hours; at least one hour.
    :param always: the share of devices that are always available.
    :param wake_spread: a device first checks in within so much time after its window begins.
    :param alignment: the system wakes jobs at multiples of so many seconds only; 0: at any time.
    :param latency: from waking to the check-in, for a device of speed 1.
    :param speed_sigma: speeds are log-normal around 1 with this sigma.
    :param examples: median number of examples; log-normal.
    :param examples_sigma: the sigma of that: the skew of the data.
    :param setup: what a task takes without any example.
    :param per_example: what an example takes on a device of speed 1.
    :param drop_out: the mean probability that a device fails at a task; it varies by device.
    :param silent: the share of failures that devices do not report.
    """

    count: int = 100_000
    zones: tuple[tuple[float, float], ...] = ((-5.0, 0.3), (0.0, 0.3), (5.5, 0.25), (9.0, 0.15))
    night_start: tuple[float, float] = (22.5, 1.5)
    night_length: tuple[float, float] = (7.5, 1.5)
    always: float = 0.1
    wake_spread: float = 1800.0
    alignment: float = 0.0
    latency: float = 3.0
    speed_sigma: float = 0.6
    examples: float = 100.0
    examples_sigma: float = 1.0
    setup: float = 10.0
    per_example: float = 0.5
    drop_out: float = 0.06
    silent: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 1_000_000:
            raise UsageError(f"a population has 1 to 1,000,000 devices, not {self.count}.")
        for name in ("always", "drop_out", "silent"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise UsageError(f"{field.name} must be a number from 0 on, not {value}.")
        if not self.zones or not all(share > 0 for _, share in self.zones):
            raise UsageError("zones need at least one offset, and shares above 0.")


class Devices:
    """The devices of one run, one array element each.

    :param start: the time at which the run starts, in seconds since the epoch.
    """

    def __init__(self, model: DeviceModel, seed: int, start: float) -> None:
        rng = np.random.default_rng(seed)
        count = model.count
        self.model = model
        self.count = count
        self._start = start
        self._draws = Draws(seed)
        shares = np.array([share for _, share in model.zones])
        hours = np.array([offset for offset, _ in model.zones])
        zones = hours[rng.choice(len(hours), count, p=shares / shares.sum())]
        begins = rng.normal(*model.night_start, count) - zones
        #: When the window of a device begins, in seconds of the UTC day.
        self.begins = np.mod(np.round(begins * 3600), DAY).astype(np.float64)
        lengths = np.clip(rng.normal(*model.night_length, count) * 3600, 3600, DAY)
        self.lengths = np.where(rng.random(count) < model.always, DAY, np.round(lengths))
        self.speeds = rng.lognormal(0.0, model.speed_sigma, count)
        examples = rng.lognormal(math.log(max(model.examples, 1e-9)), model.examples_sigma, count)
        self.examples = np.maximum(1, np.round(examples)).astype(np.int64)
        spread = 2.0 * (1.0 - model.drop_out) / model.drop_out if model.drop_out else 0.0
        self.drop_outs = (
            rng.beta(2.0, spread, count) if spread else np.full(count, float(model.drop_out))
        )
        #: How often each was given a time to come back.
        self.visits: npt.NDArray[np.uint32] = np.zeros(count, np.uint32)
        self.contributions: npt.NDArray[np.uint32] = np.zeros(count, np.uint32)

    def first_wakes(self) -> Floats:
        """Return when each device checks in first: in its first hours awake, or on waking.

        :returns: seconds after the start.
        """
        everyone = np.arange(self.count, dtype=np.int64)
        asked = self._draws.many(Purpose.FIRST_WAKE, everyone, self.visits) * _FIRST_HOURS
        return self._wakes(everyone, asked)

    def come_back_all(self, devices: Ints, after: Floats, window: RetryWindow) -> Floats:
        """Return when devices check in again that got a retry window at the times *after*.

        Times are in seconds after the start.
        """
        self.visits[devices] += 1
        delays = self._draws.many(Purpose.DELAY, devices, self.visits[devices])
        asked = after + (window.delay_min + delays * (window.delay_max - window.delay_min))
        return self._wakes(devices, asked)

    def come_back(self, device: int, after: float, window: RetryWindow) -> float:
        """Return the same for one device."""
        self.visits[device] += 1
        visits = int(self.visits[device])
        delay = self._draws.one(Purpose.DELAY, device, visits)
        asked = after + (window.delay_min + delay * (window.delay_max - window.delay_min))
        model = self.model
        phase = (asked + self._start - float(self.begins[device])) % DAY
        if phase >= self.lengths[device]:
            jitter = self._draws.one(Purpose.JITTER, device, visits)
            asked += (DAY - phase) + jitter * model.wake_spread
        if model.alignment:
            asked = math.ceil(asked / model.alignment) * model.alignment
        latency = 0.5 + self._draws.one(Purpose.LATENCY, device, visits)
        return asked + latency * model.latency / float(self.speeds[device])

    def _wakes(self, devices: Ints, asked: Floats) -> Floats:
        model, visits = self.model, self.visits[devices]
        phase = np.mod(asked + self._start - self.begins[devices], DAY)
        asleep = np.flatnonzero(phase >= self.lengths[devices])
        if len(asleep):
            jitter = self._draws.many(Purpose.JITTER, devices[asleep], visits[asleep])
            asked[asleep] += (DAY - phase[asleep]) + jitter * model.wake_spread
        if model.alignment:
            asked = np.ceil(asked / model.alignment) * model.alignment
        latency = 0.5 + self._draws.many(Purpose.LATENCY, devices, visits)
        wakes: Floats = asked + latency * model.latency / self.speeds[devices]
        return wakes

    def work(self, device: int, at: float) -> tuple[float, bool, bool]:
        """Return how a device gets on with a task that it is given.

        :param at: seconds after the start.
        :returns: after how many seconds it is done or fails, whether it fails, and whether it does
            so without a word.
        """
        model, visits, draw = self.model, int(self.visits[device]), self._draws.one
        pace = float(self.examples[device]) * model.per_example / float(self.speeds[device])
        seconds = (model.setup + pace) * (0.8 + 0.4 * draw(Purpose.DURATION, device, visits))
        failed = draw(Purpose.DROP, device, visits) < self.drop_outs[device]
        if failed:
            seconds *= draw(Purpose.DROP_TIME, device, visits)
        length = float(self.lengths[device])
        if length < DAY:
            awake = length - (at + self._start - float(self.begins[device])) % DAY
            # One that checks in late may be asleep already: it was given its last chance.
            if awake < seconds:
                seconds, failed = max(awake, 0.0), True
        silent = failed and draw(Purpose.SILENCE, device, visits) < model.silent
        return seconds, failed, silent

    def eligible(self, number: int, share: float) -> npt.NDArray[np.bool_]:
        """Return who may take the task of that number, a fixed *share* of the devices."""
        everyone = np.arange(self.count, dtype=np.int64)
        numbers = np.full(self.count, number, np.uint32)
        return self._draws.many(Purpose.ELIGIBILITY, everyone, numbers) < share

    def available(self, at: float, sample: int = 20_000) -> float:
        """Return the share of devices that are available, estimated from the first *sample*."""
        phase = np.mod(at + self._start - self.begins[:sample], DAY)
        return float(np.mean(phase < self.lengths[:sample]))
