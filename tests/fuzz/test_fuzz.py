"""Inputs that no device would send: no fault, no error in the log, no disturbed round."""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing.hostile import Hostile
from benchmarks.fuzzing.inputs import Fuzzer, Known
from benchmarks.fuzzing.phone import Phone
from benchmarks.fuzzing.run import ALLOWED, Report, ask, fuzz, make_checkpoint, make_task
from benchmarks.fuzzing.transport import Direct, Request, send_raw
from benchmarks.fuzzing.watch import Watch
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol import routes
from fcp_core.rounds.machine import ManualClock
from fcp_core.server import Server
from fcp_core.server.http.connections import BoundedHTTPServer

ROOT = Path(__file__).parents[2]


def check(report):
    assert [sent for _, sent in report.faults] == []
    assert report.logged == []
    assert report.honest_right
    assert report.good


@pytest.mark.slow
def test_a_short_run():
    report = asyncio.run(fuzz(1500, 3, honest=10))
    check(report)
    assert report.inputs == 1500
    assert report.over_sockets > 5
    assert report.bombs > 1
    # It is of use only if it gets somewhere, and is refused in more than one way.
    assert report.statuses[200] > 150
    assert {400, 401, 404, 405, 409} <= set(report.statuses)


@pytest.mark.slow
def test_a_long_run():
    report = asyncio.run(fuzz(15_000, random.Random().randrange(2**32), honest=20))
    check(report)
    assert report.peak < 64 << 20
    assert report.bombs > 25


@pytest.mark.slow
def test_a_fault_is_found(monkeypatch):
    """The run itself must notice what it is there to notice."""
    from fcp_core.server.services.protocol_calls import ProtocolCalls

    right = ProtocolCalls.call

    async def broken(self, route, request, sender=None):
        if route.method == "AbortAggregation":
            raise RuntimeError("broken on purpose")
        return await right(self, route, request, sender)

    monkeypatch.setattr(ProtocolCalls, "call", broken)
    report = asyncio.run(fuzz(400, 1, honest=2))
    assert not report.good
    assert report.fault_count > 0
    assert {status for status, _ in report.faults} == {500}
    assert any("Aggregations.AbortAggregation" in line for line in report.logged)


# One handler at a time, with whatever Hypothesis makes.


class Live:
    """A server whose sessions stand at every stage, on a loop of its own."""

    def __init__(self, folder):
        self.loop = asyncio.new_event_loop()
        plugins = Plugins.load(environ={}, working_folder=folder)
        self.server = Server(plugins, clock=ManualClock())
        self.run(self.server.start())
        self.run(self.server.services.tasks.submit(make_task("fuzzed", 10**6)))
        self.run(ask(self.server, "fuzzed"))
        http = self.server._frontend._http
        assert isinstance(http, BoundedHTTPServer)
        self.direct = Direct(http)
        self.known = Known(populations=["fuzzed"])
        for steps in (1, 2, 3, 4, 5):
            phone = Phone(self.direct.send, "fuzzed", make_checkpoint(1), self.known)
            self.run(phone.session(steps))

    def run(self, work):
        return self.loop.run_until_complete(work)

    def stop(self):
        self.run(self.server.stop())
        self.loop.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    live = Live(tmp_path_factory.mktemp("live"))
    yield live
    live.stop()


@pytest.mark.parametrize("route", routes.ROUTES, ids=lambda route: route.name)
def test_every_call_with_any_message(live, route, caplog):
    @settings(max_examples=12, deadline=None)
    @given(st.randoms(use_true_random=False), st.integers(1, 3))
    def run(rng, pieces):
        fuzzer = Fuzzer(rng, live.known, make_checkpoint(1))
        fuzzer._routes = [route]
        answer = live.run(live.direct.send(fuzzer.call(), pieces))
        assert answer.status < 500 or answer.status in ALLOWED

    run()
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_any_bytes_over_a_socket(live, caplog):
    @settings(max_examples=20, deadline=None)
    @given(st.randoms(use_true_random=False))
    def run(rng):
        fuzzer = Fuzzer(rng, live.known, make_checkpoint(1))
        statuses = live.run(send_raw(live.server.port, fuzzer.spoil_raw(fuzzer.request())))
        assert all(status < 500 or status in ALLOWED for status in statuses)

    run()
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []


# What it found.


def test_a_length_that_is_a_number_to_python_only(live, caplog):
    for path in ("/v1/eligibilityevaltasks/fuzzed:request", "/nowhere", "/upload/v1/media/x"):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xb30\r\n\r\n"
        statuses = live.run(send_raw(live.server.port, head.encode("latin-1")))
        assert all(400 <= status < 500 for status in statuses)
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_a_malformed_path_with_a_method_that_is_none(live, caplog):
    answer = live.run(live.direct.send(Request("BREW", "/v1/operations/%c2d")))
    assert answer.status == 400
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []


# What it measures.


def test_a_stall_of_the_loop_and_a_peak_of_memory_are_seen():
    async def main():
        watch = Watch()
        await asyncio.sleep(0.02)
        watch.begin()
        began = time.process_time()
        while time.process_time() < began + 0.2:
            pass
        held = bytearray(b"x" * (32 << 20))
        await asyncio.sleep(0.02)
        watch.end()
        assert len(held) == 32 << 20
        return watch

    watch = asyncio.run(main())
    assert watch.stall >= 0.2
    assert watch.peak - watch.base > 16 << 20
    assert not Report(stall=0.3).bounded
    assert not Report(peak=65 << 20).bounded
    assert Report(stall=0.2, peak=64 << 20).bounded


@pytest.mark.slow
def test_bombs_are_refused_or_small(live, caplog):
    hostile = Hostile(random.Random(4))
    refused = 0
    for _ in range(40):
        request, data = hostile.bomb()
        if data is None:
            answer = live.run(live.direct.send(request))
            assert answer.status < 500 or answer.status in ALLOWED
            refused += answer.status == 413
        else:
            statuses = live.run(send_raw(live.server.port, data))
            assert len(statuses) <= 1
    assert refused > 5
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.slow
def test_the_command_runs_from_anywhere(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--help"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--inputs" in ran.stdout
