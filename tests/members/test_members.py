"""Two members of a server: devices and programs call either."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import urllib3

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Outcome, make_query_result
from fcp_core.errors import UsageError
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.machine import SystemClock
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import LeaseRecord, MemberRecord, TaskRecord
from fcp_core.tasks.schedule import Schedule
from fcp_core.testing.servers import COLLECTION
from tests.members.shared import (
    WAIT,
    SharedSqlite,
    admin,
    contribute,
    one_table,
    other_population,
    owned,
    spread,
    sum_task,
    until,
    write,
)

pytestmark = pytest.mark.slow


def device(fcp_client, server, value, population):
    return fcp_client(server, {"v": [value]}, population=population)


def test_a_task_is_submitted_and_served_at_any_member(member, fcp_client):
    one, two = member(), member(host="::1", member_address="[::1]:0")
    populations = spread([s.server.services.members.member_id for s in (one, two)], 3)
    with admin(one) as first, admin(two) as second:
        tasks = {name: first.submit(sum_task(2, name)).task_id for name in populations}
        until(lambda: sorted(owned(one) + owned(two)) == populations)
        assert len(owned(one)) == len(owned(two)) == 3
        for name, task in tasks.items():
            for number, server in enumerate((one, two)):
                contribute(device(fcp_client, server, 2**number, name))
            for client in (first, second):
                assert client.wait(task).state == "completed"
                assert client.get(task).contributed == 2
        for client in (first, second):
            assert [task.population for task in client.list()] == populations
            assert client.status().tasks == {"completed": 6}
            assert [one.name for one in client.populations().populations] == populations
            assert client.result(tasks[name]) == first.result(tasks[name])
        second.forget(tasks[name])
        assert len(first.list()) == 5


class Refusing(BaseHTTPRequestHandler):
    """Answers that a population is another member's."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_error(421)

    def log_message(self, *what):
        pass


@contextmanager
def refusing():
    with ThreadingHTTPServer(("localhost", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("fault", ["error", "silence"])
def test_only_the_storage_says_that_there_is_no_population(member, fcp_client, fault):
    server = member(lease="1s")
    storage = server.server.services._storage
    with refusing() as url, fcp_client(server, {"v": [1]}) as device:
        # Another member says of each that it is somebody else's, of whom this one has not heard.
        ghost = partial(MemberRecord, "ghost", url, url, "elsewhere", 1, lease_seconds=WAIT)
        write(server, lambda now: ghost(started=now, heartbeat=now))
        one_table(server)
        storage.fault = fault
        result = device.run_once()
        assert result.outcome is Outcome.REJECTED, result
        start = f"{server.url}v1/populations/people/taskassignments/x:start?%24alt=proto"
        assert urllib3.request("POST", start, timeout=60, retries=False).status == 200
        storage.fault = ""
        # A machine may be so busy that the storage says nothing for a while.
        until(lambda: (result := device.run_once()).error and result.error.http == 404)


def test_a_schedule_is_kept_by_whoever_owns_its_population(member):
    one, two = member(lease="2s"), member(lease="2s")
    name = other_population(one, two)
    with admin(one) as client, admin(two) as other:
        client.submit(sum_task(1, name))
        assert owned(two) == [name]
        client.schedule(sum_task(1, name, name="again"), Schedule(1.0))
        assert owned(one) == []
        for each in (client, other):
            assert [found.population for found in each.schedules().schedules] == [name]
        until(lambda: len(client.list()) > 2)
        two.stop()
        until(lambda: owned(one) == [name])
        before = len(client.list())
        until(lambda: len(client.list()) > before)
        client.unschedule(name, "again")
        assert client.schedules().schedules == []


def test_members_show_each_other_certificates(member, fcp_client, certificates):
    def start(name, **more):
        tls = {
            "member_certfile": str(certificates / f"{name}.pem"),
            "member_ca": str(certificates / "authority.pem"),
        }
        return member(overrides=tls, **more)

    one = start("server")
    two = start("operator", external_url=one.url)
    values = np.arange(600_000)  # one that goes through as it comes
    name = other_population(one, two)
    with admin(one) as client:
        task = client.submit(sum_task(1, name, size=len(values))).task_id
        assert owned(two) == [name]
        with fcp_client(one, {"v": values}, population=name) as device:
            contribute(device)
        assert client.wait(task).state == "completed"
        assert all(each.member_url.startswith("https:") for each in client.members().members)
    address = two.server.services.members._me.member_url
    trusting = {"ca_certs": str(certificates / "authority.pem"), "retries": False}
    certificate = str(certificates / "device.pem")
    with urllib3.PoolManager(**trusting, cert_file=certificate) as http:
        assert http.request("GET", f"{address}admin/v1/tasks/{task}").status == 404  # not signed
    with urllib3.PoolManager(**trusting) as http, pytest.raises(urllib3.exceptions.HTTPError):
        http.request("GET", f"{address}admin/v1/tasks/{task}")


def test_a_certificate_of_a_member_needs_an_authority(member, certificates):
    with pytest.raises(UsageError, match="needs both member_certfile and member_ca"):
        member(overrides={"member_certfile": str(certificates / "server.pem")})


def test_a_program_in_the_process_submits_for_a_population_that_nobody_owned(member, fcp_client):
    one = member()
    task = one.submit(sum_task(1, "new"))
    contribute(device(fcp_client, one, 4, "new"))
    assert one.result(task)["total"].tolist() == [4]
    two = member()
    with pytest.raises(StatusError) as refusal:
        two.submit(sum_task(1, "new"))
    assert refusal.value.code is Code.FAILED_PRECONDITION
    assert f"owned by the member at {one.server.services.members._me.member_url}" in str(
        refusal.value
    )


def test_a_member_that_lost_a_population_writes_nothing(member):
    one = member(lease="1s")
    with AdminClient(one.url, "a-secret-of-members", patience=0) as client:
        task = client.submit(sum_task(1)).task_id
        # Somebody took it over, and this one has not looked since.
        write(one, lambda now: LeaseRecord("people", "thief", 9, now + 60, now))
        with pytest.raises(StatusError) as refusal:
            client.cancel(task)
        assert refusal.value.code is Code.UNAVAILABLE

    async def stored():
        return await one.server.services._storage.transact(lambda tx: tx.get(TaskRecord, task))

    assert one._run(stored()).state == "open"
    until(lambda: owned(one) == [])


def test_what_was_to_be_offered_while_a_member_slept_does_not_keep_it(member):
    """It waits for the population, which is another member's when this one wakes up."""
    one = member(lease="1s")
    services = one.server.services
    with admin(one) as client:
        client.schedule(sum_task(1), Schedule(86400.0))
    write(one, lambda now: LeaseRecord("people", "thief", 9, now + 60, now))

    async def sleep():
        time.sleep(1.1)  # longer than the lease, and the loop with it
        services.schedules.tick(services._clock.now() + 2 * 86400)

    one._run(sleep())
    # That one is gone soon, and it is free to take it again.
    until(lambda: owned(one) == ["people"] and services.members.epochs["people"] > 9)
    until(lambda: not (services.members._work or services.schedules._offering))


def test_a_write_that_was_begun_before_the_population_went_and_came_back_is_refused(member):
    one = member(lease="1s")
    with admin(one) as client:
        client.submit(sum_task(1))
    transact = one.server.services._storage.transact
    begun = one.server.services.members.fence()
    # Somebody took it over and is gone again.
    write(one, lambda now: LeaseRecord("people", "thief", 9, now - 1, now))

    def own():
        lease = one._run(transact(lambda tx: tx.get(LeaseRecord, "people")))
        return lease.epoch > 9 and owned(one) == ["people"]

    until(own)
    with pytest.raises(LeaseLostError):
        one._run(transact(lambda tx: begun(tx, "people")))
    now = one.server.services.members.fence()
    one._run(transact(lambda tx: now(tx, "people")))


def test_a_new_member_is_given_its_share_and_ends_nothing_early(member, fcp_client, monkeypatch):
    """The date of its host is an hour ahead: deadlines are the storage's."""
    one = member()
    ahead = SystemClock(lambda: time.time() + 3600)
    monkeypatch.setattr("fcp_core.server.server.SystemClock", lambda: ahead)
    # So many that it is sure to be given some, and not all.
    names = [f"p{number}" for number in range(30)]
    with admin(one) as client:
        tasks = {name: client.submit(sum_task(1, name)).task_id for name in names}
        assert sorted(owned(one)) == sorted(names)
        two = member()
        wanted = [name for name in names if one_table(one).chosen(name)]
        until(lambda: sorted(owned(two)) == sorted(wanted))
        kept = [name for name in names if name not in wanted]
        for name in (*wanted[:3], *kept[:3]):
            contribute(device(fcp_client, one, 3, name))
            assert client.wait(tasks[name]).state == "completed"


def test_a_submission_is_answered_by_the_next_owner_if_the_population_went(member, fcp_client):
    one = member()
    two = member()
    name = other_population(one, two)
    with admin(one) as client:
        task = client.submit(sum_task(1, name)).task_id
    assert owned(two) == [name]
    stolen = []

    def data(selector):
        # The owner is to find this out by itself when it writes.
        if not stolen:
            stolen.append(name)
            write(two, lambda now: LeaseRecord(name, "", 50, now, now))
        return [make_query_result({"v": np.array([9], np.int64)}).SerializeToString()]

    with fcp_client(two, population=name, stores={COLLECTION: CallableStore(data)}) as client:
        result = client.run_once()
        assert result.outcome is Outcome.CONTRIBUTED, result
        # It was lost: another one makes up for it.
        contribute(client)
    with admin(one) as client:
        ended = client.wait(task)
        assert (ended.state, ended.contributed) == ("completed", 1)
        assert [x.epoch for x in client.members().leases if x.population == name] > [50]


def test_a_storage_that_is_slow_at_the_start_is_waited_for(member, monkeypatch):
    monkeypatch.setattr(SharedSqlite, "fault", "silence")
    answers = threading.Timer(1.5, monkeypatch.setattr, (SharedSqlite, "fault", ""))
    answers.start()
    server = member(lease="1s")
    answers.join()
    with admin(server) as client:
        assert len(client.members().members) == 1


def test_a_storage_that_fails_at_the_start_is_named(member, monkeypatch):
    monkeypatch.setattr(SharedSqlite, "fault", "error")
    with pytest.raises(UsageError, match=r"does not answer.*: the test has it fail; start again"):
        member()
