"""Counters, gauges and histograms, as text of the format 0.0.4 or OpenMetrics 1.0."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: The most sets of labels that one metric has; what comes beyond is counted under ``other``.
MAX_SERIES = 2000

Labels: TypeAlias = tuple[str, ...]

#: The series of one metric, and of several by name, as another process sends them.
Series: TypeAlias = Sequence[tuple[Sequence[str], Sequence[float]]]
Dump: TypeAlias = Mapping[str, Series]


class Metric:
    """One metric: its name, its help and the names of its labels.

    :param bound: the most sets of labels.
    """

    kind = ""
    #: What OpenMetrics calls it, if that is something else, and the suffix of its samples.
    open_kind = ""
    suffix = ""

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), bound: int = MAX_SERIES
    ) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._bound = bound
        self._series: dict[Labels, list[float]] = {}

    def drop(self, **labels: str) -> None:
        """Forget the series that have these values of these labels, if it has such labels."""
        if not labels.keys() <= set(self.labels):
            return
        wanted = [(self.labels.index(name), value) for name, value in labels.items()]
        for key in [k for k in self._series if all(k[i] == value for i, value in wanted)]:
            del self._series[key]

    def dump(self) -> Series:
        """Return all series."""
        return [(key, list(values)) for key, values in self._series.items()]

    def add_series(self, series: Series) -> None:
        """Add the series of another process."""
        for labels, more in series:
            values = self._find(tuple(labels), len(more))
            for index, value in enumerate(more):
                values[index] += value

    def lines(self, others: Iterable[Series] = (), openmetrics: bool = False) -> Iterator[str]:
        """Yield the metric as text, series in the order in which they came.

        :param others: the series of other processes; sums are shown.
        :param openmetrics: in that format, in which a family has no suffix.
        """
        family = self.name.removesuffix(self.suffix) if openmetrics else self.name
        kind = (self.open_kind or self.kind) if openmetrics else self.kind
        yield f"# HELP {family} {_escape(self.help, quotes=openmetrics)}"
        yield f"# TYPE {family} {kind}"
        whole = copy.copy(self)
        whole._series = {key: list(values) for key, values in self._series.items()}
        for series in others:
            whole.add_series(series)
        for key, values in whole._series.items():
            yield from self._samples(key, values)

    def _samples(self, key: Labels, values: list[float]) -> Iterator[str]:
        yield self._sample("", zip(self.labels, key, strict=True), values[0])

    def _sample(self, suffix: str, labels: Iterable[tuple[str, str]], value: float) -> str:
        text = ",".join(f'{name}="{_escape(value)}"' for name, value in labels)
        return (
            f"{self.name}{suffix}{{{text}}} {_number(value)}"
            if text
            else (f"{self.name}{suffix} {_number(value)}")
        )

    def _find(self, key: Labels, size: int) -> list[float]:
        if len(key) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(key)} of them")
        values = self._series.get(key)
        if values is None:
            if len(self._series) >= self._bound:
                key = ("other",) * len(self.labels)
            values = self._series.setdefault(key, [0.0] * size)
        return values


class Counter(Metric):
    """A number that only grows."""

    kind = "counter"
    suffix = "_total"

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add to the series of these labels."""
        self._find(labels, 1)[0] += amount

    def get(self, *labels: str) -> float:
        """Return the value of the series of these labels; 0 if there is none."""
        return self._series.get(labels, [0.0])[0]


class Gauge(Metric):
    """A number that goes up and down, read when metrics are rendered.

    :param read: returns the number; None if :meth:`set` gives the values.
    """

    kind = "gauge"

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str] = (),
        read: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(name, help, labels)
        self._read = read

    def set(self, *labels: str, value: float) -> None:
        """Set the series of these labels."""
        self._find(labels, 1)[0] = value

    def dump(self) -> Series:
        """Return all series, with the value of now."""
        self._look()
        return super().dump()

    def lines(self, others: Iterable[Series] = (), openmetrics: bool = False) -> Iterator[str]:
        """Yield the metric as text, with its value of now."""
        self._look()
        return super().lines(others, openmetrics)

    def _look(self) -> None:
        if self._read is not None:
            self.set(value=self._read())


class Info(Metric):
    """What does not change while the server runs, as labels of the number 1.

    :param values: by label.
    """

    kind = "gauge"
    open_kind = "info"
    suffix = "_info"

    def __init__(self, name: str, help: str, values: Mapping[str, str]) -> None:
        super().__init__(name, help, tuple(values))
        self._series[tuple(values.values())] = [1.0]

    def add_series(self, series: Series) -> None:
        """Do nothing: what is true of several processes is no sum."""


class Histogram(Metric):
    """Counts of numbers by fixed buckets.

    :param buckets: upper bounds, ascending; one without an end is added.
    """

    kind = "histogram"

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> None:
        super().__init__(name, help, labels)
        self._buckets = tuple(buckets)

    def observe(self, *labels: str, value: float) -> None:
        """Count a number in the series of these labels."""
        values = self._find(labels, len(self._buckets) + 2)
        values[bisect.bisect_left(self._buckets, value)] += 1
        values[-1] += value

    def _samples(self, key: Labels, values: list[float]) -> Iterator[str]:
        labels = list(zip(self.labels, key, strict=True))
        total = 0.0
        for bound, count in zip((*self._buckets, float("inf")), values, strict=False):
            total += count
            yield self._sample("_bucket", [*labels, ("le", _number(bound))], total)
        yield self._sample("_sum", labels, values[-1])
        yield self._sample("_count", labels, total)


def render(
    metrics: Iterable[Metric], others: Sequence[Dump] = (), openmetrics: bool = False
) -> bytes:
    """Return the metrics as Prometheus reads them.

    :param others: the dumps of other processes; sums are shown.
    :param openmetrics: in that format.
    """
    lines = [
        line
        for metric in metrics
        for line in metric.lines(
            [dump[metric.name] for dump in others if metric.name in dump], openmetrics
        )
    ]
    if openmetrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode()


def _number(value: float) -> str:
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _escape(text: str, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
