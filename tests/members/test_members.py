"""Two members of a server: devices and programs call either."""

from __future__ import annotations

import asyncio
import itertools
import socket

import numpy as np
import pytest
import urllib3

from fcp_core.admin import AdminClient
from fcp_core.client import CallableStore, Outcome, make_query_result
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.http.passing import HEADER, Passed, sign
from fcp_core.storage.leases import LeaseLostError
from fcp_core.storage.records import LeaseRecord, MemberRecord, TaskRecord
from fcp_core.tasks.schedule import Schedule
from fcp_core.testing.servers import COLLECTION
from tests.members.shared import owned, spread, sum_task, until

pytestmark = pytest.mark.slow


def admin(server):
    return AdminClient(server.url, "a-secret-of-members")


def contribute(device):
    """Contribute, on a machine that may be so busy that a lease runs out meanwhile."""
    until(lambda: device.run_once().outcome is Outcome.CONTRIBUTED)


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


def other_population(one, two):
    """Return a population that the second member is to own."""
    table = one_table(one)
    return next(name for name in map("p{}".format, itertools.count()) if table.chosen(name))


def write(server, *records):
    """Write records into the storage that a member uses."""

    async def work():
        def body(tx):
            for record in records:
                tx.put(record(tx.now()) if callable(record) else record)

        await server.server.services._storage.transact(body)

    server._run(work())


def test_an_upload_goes_through_the_wrong_member_as_it_comes(member, fcp_client):
    one = member()
    # All that devices are told is the first member's address.
    two = member(external_url=one.url)
    name = other_population(one, two)
    values = np.arange(600_000)  # 4.8 MB, incompressible enough
    with admin(one) as client:
        task = client.submit(sum_task(2, name, size=len(values))).task_id
        assert owned(two) == [name]
        for compress in (True, False):
            with fcp_client(one, {"v": values}, population=name, compress=compress) as device:
                contribute(device)
        assert client.wait(task).state == "completed"
        total = open_checkpoint(client.result(task))["total"]
        assert np.array_equal(total, 2 * values)
    # Nothing of the bodies was kept on the way.
    assert one.server._frontend.in_flight == 0


def test_a_dead_owner_costs_a_check_in_a_window_and_a_later_call_some_patience(member, fcp_client):
    lease = 2.0
    one = member(lease=f"{lease}s")
    name = "p0"
    with admin(one) as client:
        client.submit(sum_task(1, name))
    two = member(lease=f"{lease}s")
    chosen = [s for s in (one, two) if name in owned(s)]
    assert chosen == [one]

    # Somebody else owns another population, and is dead: nobody listens where it was.
    ghost = "ghost"
    with socket.create_server(("localhost", 0)) as closed:
        url = f"http://localhost:{closed.getsockname()[1]}/"
    write(
        one,
        lambda now: MemberRecord(ghost, url, url, "elsewhere", 1, now, now),
        lambda now: LeaseRecord("haunted", ghost, 7, now + 3 * lease, now),
    )
    until(lambda: mark_of("haunted") in two.server.services.members.table.known)
    with fcp_client(two, {"v": [1]}, population="haunted") as device:
        result = device.run_once()
    assert result.outcome is Outcome.REJECTED, result
    # Once the lease is over it is taken, with the next epoch; not before.
    with admin(two) as client:
        found = until(lambda: [x for x in client.members().leases if x.epoch == 8])
        assert found[0].population == "haunted"
        assert found[0].member_id != ghost
        task = client.submit(sum_task(1, "haunted")).task_id
        with fcp_client(one, {"v": [5]}, population="haunted") as device:
            contribute(device)
        assert client.wait(task).state == "completed"


@pytest.mark.parametrize("fault", ["error", "silence"])
def test_only_the_storage_says_that_there_is_no_population(member, fcp_client, fault):
    server = member(lease="1s")
    storage = server.server.services._storage
    storage.fault = fault
    with fcp_client(server, {"v": [1]}) as device:
        result = device.run_once()
        assert result.outcome is Outcome.REJECTED, result
        start = f"{server.url}v1/populations/people/taskassignments/x:start?%24alt=proto"
        assert urllib3.request("POST", start, timeout=60, retries=False).status == 200
        storage.fault = ""
        # A machine may be so busy that the storage says nothing for a while.
        until(lambda: (result := device.run_once()).error and result.error.http == 404)


def test_calls_for_members_are_signed_and_passed_on_once(member):
    one, two = member(), member()
    name = other_population(one, two)
    with admin(one) as client:
        task = client.submit(sum_task(1, name)).task_id
    uri = f"/admin/v1/tasks/{task}"
    http = urllib3.PoolManager()
    first, second = (s.server.services.members for s in (one, two))
    header = sign(first.table.secrets, "GET", uri, Passed.of_member(b""))
    there = second._me.member_url.rstrip("/")
    assert http.request("GET", there + uri, headers={HEADER: header}).status == 200
    for wrong in ("", "x.00", header[:-1] + ("0" if header[-1] != "0" else "1"), f"{header}0"):
        assert http.request("GET", there + uri, headers={HEADER: wrong}).status == 404
    assert http.request("GET", there + uri + "x", headers={HEADER: header}).status == 404
    # Whoever reads the members' network has the header, and can send nothing else with it.
    signed = sign(first.table.secrets, "POST", "/admin/v1/tasks", Passed.of_member(b"{}"))
    for body, status in ((b"{}", 400), (b'{"name": "x"}', 403)):
        sent = http.request("POST", there + "/admin/v1/tasks", body, headers={HEADER: signed})
        assert sent.status == status
    # The other one does not own it, and does not pass it on again.
    here = first._me.member_url.rstrip("/")
    answer = http.request("GET", here + uri, headers={HEADER: header}, timeout=30)
    assert answer.status == 421
    # Devices have no use for the header.
    answer = http.request("GET", one.url + uri[1:], headers={HEADER: header})
    assert answer.status == 401


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


def test_a_new_member_is_given_its_share(member, fcp_client):
    one = member()
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


def one_table(server):
    """Return the table of a member that knows of another one."""
    members = server.server.services.members
    until(lambda: members.table.members)
    return members.table


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


@pytest.mark.parametrize("compress", [False, True])
def test_a_large_upload_for_an_owner_that_died_is_taken_by_the_next(member, fcp_client, compress):
    one = member(lease="1s")
    values = np.random.default_rng(1).integers(1 << 40, size=20_000)  # 160 kB, also compressed
    calls = one.server.services.protocol_calls
    call = calls.call
    with socket.create_server(("localhost", 0)) as closed:
        url = f"http://localhost:{closed.getsockname()[1]}/"

    async def lose_it(route, request, sender=None):
        answer = await call(route, request, sender)
        if route.method == "StartAggregationDataUpload":

            def body(tx):
                now = tx.now()
                tx.put(MemberRecord("ghost", url, url, "elsewhere", 1, now, now))
                tx.put(LeaseRecord("people", "ghost", 50, now + 1.5, now))

            calls.call = call
            await one.server.services._storage.transact(body)
            await one.server.services.members.look()
            assert owned(one) == []
        return answer

    calls.call = lose_it
    with admin(one) as client:
        task = client.submit(sum_task(1, size=len(values))).task_id
        with fcp_client(one, {"v": values}, population="people", compress=compress) as device:
            # Its body is read, to be passed on, and then this member has the population again.
            assert device.run_once().outcome is Outcome.CONTRIBUTED
        assert client.wait(task).state == "completed"
        assert np.array_equal(open_checkpoint(client.result(task))["total"], values)


def test_an_upload_that_completes_at_an_owner_that_lost_the_population_is_handed_on(
    member, fcp_client
):
    one, two = member(), member()
    name = other_population(one, two)
    with admin(one) as client:
        task = client.submit(sum_task(1, name)).task_id
    assert owned(two) == [name]
    until(lambda: two.server._links.at(one.server.services.members._me.member_url))
    media = two.server.services.media
    finish = media.finish_upload

    async def lose_it(*upload):
        media.finish_upload = finish
        heir = one.server.services.members.member_id

        def body(tx):
            tx.put(LeaseRecord(name, heir, 50, tx.now() + 60, tx.now()))

        await two.server.services._storage.transact(body)
        for server in (two, one):
            look = server.server.services.members.look()
            await asyncio.wrap_future(server._thread.run(look))
        await finish(*upload)

    media.finish_upload = lose_it
    with fcp_client(two, {"v": [6]}, population=name) as client:
        result = client.run_once()
    assert result.outcome is Outcome.CONTRIBUTED, result
    with admin(one) as client:
        assert client.get(task).contributed == 1  # it was answered, and it counts
        assert client.wait(task).state == "completed"
        assert open_checkpoint(client.result(task))["total"].tolist() == [6]
