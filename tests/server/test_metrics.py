"""What a server counts, and how it writes it down."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.status import Code
from fcp_core.rounds.events import Assigned, Rejected, Released, TaskClosed, TaskOpened
from fcp_core.rounds.machine import ManualClock
from fcp_core.server.http.metrics import KEPT, ServerMetrics
from fcp_core.server.http.prometheus import Counter, Gauge, Histogram, Info, render
from tests.server.series import COUNTS, UNESCAPE, parse, sample

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


# The event loop.


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose time can be moved on, as by a callback that takes long."""

    skipped = 0.0

    def time(self):
        return super().time() + self.skipped


def test_a_callback_that_takes_long_is_seen_by_all_that_would_have_waited():
    """In 0.5 s ten measurements were due; the first waited 0.5 s, the last hardly at all."""
    loop = JumpingLoop()
    metrics = ServerMetrics(ManualClock(0.0), lambda: COUNTS)

    async def main():
        metrics.watch(lambda: 0, lambda: 0)
        while not sample(parse(metrics.render()), "fcp_loop_lag_seconds_count"):
            loop.skipped += 0.01
            await asyncio.sleep(0)
        before = parse(metrics.render())
        loop.skipped += 0.5
        while True:
            await asyncio.sleep(0)
            after = parse(metrics.render())
            if sample(after, "fcp_loop_lag_seconds_count") > sample(
                before, "fcp_loop_lag_seconds_count"
            ):
                metrics.stop()
                return before, after

    try:
        before, after = loop.run_until_complete(main())
    finally:
        loop.close()

    def grown(name, **labels):
        return sample(after, name, **labels) - sample(before, name, **labels)

    count = grown("fcp_loop_lag_seconds_count")
    assert count >= 10
    assert count - grown("fcp_loop_lag_seconds_bucket", le="0.2") >= 5
    assert count - grown("fcp_loop_lag_seconds_bucket", le="0.02") >= 9
    assert grown("fcp_loop_lag_seconds_sum") >= 2.2


# The text form.


@given(st.dictionaries(st.text(), st.floats(0, 1e300), max_size=8))
def test_any_label_comes_back(values):
    counter = Counter("c_total", 'A "help"\nof two \\ lines.', ["label"])
    for label, value in values.items():
        counter.add(label, amount=value)
    text = render([counter])
    # Only a line feed ends a line; what else Python takes for one is escaped here for the parser.
    lines = text.split(b"\n")
    assert len(lines) == 3 + len(values)
    assert lines[0] == b'# HELP c_total A "help"\\nof two \\\\ lines.'
    found = {}
    for line in lines[2:-1]:
        label, value = re.fullmatch(r'c_total\{label="(.*)"\} (\S+)', line.decode(), re.S).groups()
        found[re.sub(r"\\.", lambda m: UNESCAPE[m[0]], label)] = float(value)
    assert found == values


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_what_is_at_most_its_bounds(values):
    histogram = Histogram("h", "Help.", buckets=(0.5, 1, 10))
    for value in values:
        histogram.observe(value=value)
    samples = parse(render([histogram]))
    for bound, limit in (("0.5", 0.5), ("1", 1), ("10", 10), ("+Inf", float("inf"))):
        expected = sum(value <= limit for value in values)
        assert sample(samples, "h_bucket", le=bound) == expected
    assert sample(samples, "h_count") == len(values)
    assert sample(samples, "h_sum") == pytest.approx(sum(values))


def test_a_gauge_is_read_when_it_is_asked_for():
    values = iter([1.0, 2.5])
    gauge = Gauge("g", "Help.", read=lambda: next(values))
    assert render([gauge]).endswith(b"\ng 1\n")
    assert render([gauge]).endswith(b"\ng 2.5\n")


def test_series_are_bounded_and_labels_are_counted():
    counter = Counter("c_total", "Help.", ["a"], bound=3)
    for number in range(10):
        counter.add(str(number))
    samples = parse(render([counter]))
    assert len(samples) == 4
    assert sample(samples, "c_total", a="other") == 7
    with pytest.raises(ValueError, match="labels"):
        counter.add("1", "2")


# What is kept.


def closed(name, at=0.0):
    return TaskClosed(at, "p", "id", name, 1, Code.OK)


def test_the_series_of_tasks_that_ended_are_dropped_after_a_while():
    clock = ManualClock()
    metrics = ServerMetrics(clock, lambda: COUNTS)
    for name in ("a", "b"):
        metrics.event(TaskOpened(0.0, "p", "id", name, 1))
        metrics.event(Assigned(0.0, "p", "session", "id", name))
    metrics.event(TaskOpened(0.0, "p", "id2", "b", 1))
    metrics.event(closed("a"))
    metrics.event(closed("b"))  # its second round goes on
    clock.advance(KEPT - 1)
    assert sample(parse(metrics.render()), "fcp_assignments_total", population="p", task="a") == 1
    clock.advance(1)
    samples = parse(metrics.render())
    assert [key for key in samples if ("task", "a") in key[1]] == []
    assert sample(samples, "fcp_assignments_total", population="p", task="b") == 1
    # A task that is opened again within the time keeps its series.
    metrics.event(closed("b"))
    metrics.event(TaskOpened(0.0, "p", "id3", "b", 1))
    clock.advance(KEPT)
    assert sample(parse(metrics.render()), "fcp_assignments_total", population="p", task="b") == 1


def test_a_reason_that_is_no_short_word_is_other():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    for reason in ("no_task", "The device 10.1.2.3 is too old", "x" * 50, ""):
        metrics.event(Rejected(0.0, "p", "session", reason))
    samples = parse(metrics.render())
    assert sample(samples, "fcp_rejections_total", population="p", reason="no_task") == 1
    assert sample(samples, "fcp_rejections_total", population="p", reason="other") == 3


def test_a_release_counts_and_says_what_ledgers_say():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    for spent in (1.0, math.inf):
        metrics.event(Released(0.0, "p", "id", "a", {"privacy_spent": spent, "Not a word": 1}))
        samples = parse(metrics.render())
        assert sample(samples, "fcp_ledger", population="p", figure="privacy_spent") == spent
    assert sample(samples, "fcp_releases_total", population="p", task="a") == 2
    assert sample(samples, "fcp_ledger", population="p", figure="other") == 1


def test_units_are_seconds_and_bytes_and_counters_are_totals():
    for metric in ServerMetrics(ManualClock(), lambda: COUNTS)._metrics:
        assert metric.name.endswith("_total") == isinstance(metric, Counter), metric.name
        assert metric.name.endswith("_info") == isinstance(metric, Info)
        if isinstance(metric, Histogram):
            assert metric.name.endswith(("_seconds", "_bytes"))
        assert not re.search(r"_(ms|millis|minutes|hours|kb|mib|percent|age)$", metric.name)


def test_the_information_of_several_processes_is_no_sum():
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    text = metrics.render([metrics.dump(), metrics.dump()])
    (value,) = [v for (name, _), v in parse(text).items() if name == "fcp_server_info"]
    assert value == 1


def test_the_docs_list_every_metric_and_no_other():
    listed = re.findall(r"^\| `(fcp_\w+)` \| (\w+) \|", DOCS.read_text(encoding="utf-8"), re.M)
    metrics = ServerMetrics(ManualClock(), lambda: COUNTS)
    text = metrics.render().decode()
    assert sorted(listed) == sorted(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
