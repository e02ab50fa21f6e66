"""Calls that come to a member which does not own their population."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import urllib3

from fcp_core.client import Outcome
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.rounds.token_parts import mark_of
from fcp_core.server.http.passing import HEADER, Passed, sign
from fcp_core.server.processes.member_links import LinkedMember
from fcp_core.storage.records import LeaseRecord, MemberRecord
from tests.members.shared import (
    WAIT,
    admin,
    contribute,
    other_population,
    owned,
    sum_task,
    until,
    write,
)

pytestmark = pytest.mark.slow


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
    one, two = member(lease=f"{lease}s"), member(lease=f"{lease}s")
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


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_an_owner_that_sleeps_in_the_middle_of_its_answer(member, size):
    """A small answer is asked for again; a large one, which was begun, is cut off."""
    server, mark = member(lease="2s"), mark_of("haunted")
    address = f"{server.url}data/{mark.hex()}{'0' * 64}/x"
    with socket.create_server(("localhost", 0)) as ghost, ThreadPoolExecutor(1) as pool:
        ghost.settimeout(WAIT)
        url = f"http://localhost:{ghost.getsockname()[1]}/"
        write(
            server,
            lambda now: MemberRecord("ghost", url, url, "elsewhere", 1, now, now),
            lambda now: LeaseRecord("haunted", "ghost", 7, now + 2 * WAIT, now),
        )
        until(lambda: mark in server.server.services.members.table.known)
        options = {"timeout": WAIT, "retries": False, "preload_content": False}
        asked = pool.submit(urllib3.request, "GET", address, **options)
        connection, _ = ghost.accept()
        while not connection.recv(1 << 16).startswith(b"GET /data/"):
            connection.close()  # members call each other for other things too
            connection, _ = ghost.accept()
        with connection:
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n.".encode())
            if size > 100:
                assert asked.result().status == 200
            write(server, lambda now: LeaseRecord("haunted", "ghost", 7, now, now))
            answer = asked.result()
            with answer:
                if size > 100:
                    with pytest.raises(urllib3.exceptions.ProtocolError, match="IncompleteRead"):
                        answer.read()
                else:
                    assert answer.status == 410


def test_a_member_that_says_nothing_any_more_is_not_waited_for(member):
    """As if the network between the two were cut, while both reach the storage."""
    one, two = member(lease="1s"), member(lease="1s")
    name = other_population(one, two)
    with admin(one) as client:
        task = client.submit(sum_task(1, name)).task_id
    until(lambda: one.server._links.at(two.server.services.members._me.member_url))
    answers, get = two.server.services.admin, two.server.services.admin.get_task
    go_on = asyncio.Event()

    async def once(task_id):
        answers.get_task = get
        two.server._links._beating.cancel()
        await go_on.wait()
        return await get(task_id)

    async def end():
        go_on.set()

    answers.get_task = once
    try:
        headers = {"Authorization": "Bearer a-secret-of-members"}
        uri = f"{one.url}admin/v1/tasks/{task}"
        answer = urllib3.request("GET", uri, headers=headers, timeout=WAIT, retries=False)
        # It may have been sent again, if there is time left for that.
        assert answer.status in (200, 503)
        with admin(one) as client:
            assert client.get(task).task_id == task
    finally:
        two._run(end())


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
    one._run(comes_late(one.server._links))


async def comes_late(links):
    """Have a link begin when its member has hung up; the end of that one would wait for it."""
    await links.leave(WAIT)
    other = LinkedMember(links, "late", "http://localhost:1/")
    ended = SimpleNamespace(close=partial(other.link.connection_lost, None))
    other.link.connection_made(ended)
    links.joined(other)
    assert other.gone.is_set()


@pytest.mark.parametrize("compress", [False, True])
def test_a_large_upload_for_an_owner_that_died_is_taken_by_the_next(member, fcp_client, compress):
    one = member()
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
