"""Who gets which processors, and what cannot be served in several processes."""

import os

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server
from fcp_core.server.http.prometheus import Counter, Gauge, Histogram, render
from fcp_core.server.processes.processors import on_processors, shares

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="the system does not say"
)


@needs_affinity
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processors_are_shared_out(monkeypatch, processes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7, 11})
    found = shares(processes)
    assert len(found) == processes
    assert sorted(cpu for share in found for cpu in share) == [2, 3, 5, 7, 11]
    assert max(map(len, found)) - min(map(len, found)) <= 1


@needs_affinity
def test_more_processes_than_processors_share_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert shares(3) == ()


def test_a_system_that_does_not_say_shares_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert shares(2) == ()


@needs_affinity
def test_a_thread_gets_its_processors_back():
    before = os.sched_getaffinity(0)
    one = frozenset([min(before)])
    with on_processors(one):
        assert os.sched_getaffinity(0) == one
    with on_processors(frozenset()):
        assert os.sched_getaffinity(0) == before


class Door:
    """Judges every request: each process would have to have it."""

    @hookimpl
    def fcp_authenticate(self, headers):
        return headers.get("x-name")


class Watcher:
    """Only observes."""

    @hookimpl
    def fcp_event(self, event):
        pass


def test_objects_that_every_process_would_need_are_refused():
    plugins = Plugins.load(environ={}, working_folder="/", extra=[Door(), Watcher()])
    with pytest.raises(UsageError, match=r"Door \(fcp_authenticate\)\. Name their modules"):
        Server(plugins, processes=2)
    recipe = Plugins.load(
        environ={}, working_folder="/", extra=[Watcher()], overrides={"retry_min": "5s"}
    ).recipe()
    assert Plugins.load(**recipe).config.get("retry_min") == 5


@pytest.mark.parametrize("processes", [0, -1])
def test_a_server_needs_a_process(processes):
    with pytest.raises(UsageError, match="processes must be at least 1"):
        Server(Plugins.load(environ={}, working_folder="/"), processes=processes)


def test_what_processes_measure_is_added_up():
    def measured():
        requests = Counter("requests", "Requests.", ["route"])
        seconds = Histogram("seconds", "Time.", buckets=[1, 10])
        return [requests, seconds, Gauge("held", "Bytes.", read=lambda: 5)]

    here, there, nowhere = measured(), measured(), measured()
    here[0].add("upload", amount=2)
    there[0].add("upload")
    there[0].add("other")
    there[1].observe(value=5)
    here[1].observe(value=0.5)
    dumps = [{metric.name: metric.dump() for metric in others} for others in (there, nowhere)]
    text = render(here, dumps).decode()
    for line in (
        'requests{route="upload"} 3',
        'requests{route="other"} 1',
        'seconds_bucket{le="1"} 1',
        'seconds_bucket{le="10"} 2',
        "seconds_sum 5.5",
        "seconds_count 2",
        "held 15",
    ):
        assert f"{line}\n" in text
    # What was shown is not what is kept.
    assert 'requests{route="upload"} 2\n' in render(here).decode()
    # A process that is no more is counted on; what it held it holds no longer.
    here[0].add_series(dumps[0]["requests"])
    assert here[0].get("upload") == 3
