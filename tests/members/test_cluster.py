"""Real processes that share a PostgreSQL database: what happens when one of them goes."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from tests.members.cluster import STEADY, WORDS, Cluster, Fleet, Member, fleet_task
from tests.members.shared import WAIT, spread, until

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(fcp_postgres_server, fcp_postgres_schema, tmp_path):
    made = Cluster(tmp_path, fcp_postgres_server.url, fcp_postgres_schema())
    yield made
    made.close()


def run_task(cluster, fault, *, goal=24, after=6):
    """Let devices contribute to a task; *fault* happens to the owner in the middle of it."""
    with cluster.members[0].admin() as admin:
        task = admin.submit(fleet_task(goal)).task_id
    owner = cluster.owner("people")
    fleet = Fleet(cluster.balancer.url)
    try:
        until(lambda: len(fleet.accepted) >= after)
        fault(owner)
        survivor = next(each for each in cluster.members if each is not owner)
        with survivor.admin() as admin:
            until(lambda: admin.get(task).is_final)
    finally:
        fleet.stop()
    with survivor.admin() as admin:
        ended = admin.get(task)
        assert ended.state == "completed", ended
        fleet.check(admin.result(task), ended.contributed, ended.surplus)
    return owner, survivor


def test_the_owner_is_killed_and_nothing_is_lost(cluster):
    for _ in range(2):
        cluster.start()
    killed = []

    def kill(owner):
        survivor = next(each for each in cluster.members if each is not owner)
        with survivor.admin() as admin:
            killed.append(admin.members().leases[0])
        owner.kill()
        cluster.balancer.cut(owner)

    _, survivor = run_task(cluster, kill)
    with survivor.admin() as admin:
        members = admin.members()
    (before,), (lease,) = killed, members.leases
    assert lease.pid == survivor.process.pid
    assert [each.pid for each in members.members if each.lives] == [survivor.process.pid]
    assert len(members.members) == 2
    assert lease.epoch == before.epoch + 1
    # Not before its lease had run out, and not long after.
    assert lease.since >= before.since
    assert f"epoch {lease.epoch}" in survivor.log
    assert "Traceback" not in survivor.log


def check_in(url):
    """Check in once; return the status of the answer, or None if there is none."""
    uri = f"{url}v1/eligibilityevaltasks/people:request?%24alt=proto"
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        return urllib3.request("POST", uri, body=b"", timeout=WAIT, retries=False).status
    return None


def test_an_owner_that_slept_cannot_write_and_says_so(cluster):
    for _ in range(2):
        cluster.start("-s", "server.processes=2")
    asked = []

    def sleep(owner):
        owner.signal(signal.SIGSTOP)
        asked.extend(pool.submit(check_in, owner.url) for _ in range(16))
        cluster.balancer.cut(owner)

    with ThreadPoolExecutor(16) as pool:
        owner, survivor = run_task(cluster, sleep)
        # What came to its other process is answered by the next owner; the rest is the kernel's.
        until(lambda: 200 in {each.result() for each in asked if each.done()})
        owner.signal(signal.SIGCONT)
    until(lambda: "taken over by another member" in owner.log)
    # It is a member again, without that population, and answers for it at any time.
    with owner.admin() as admin, survivor.admin() as other:
        assert [task.state for task in admin.list()] == ["completed"]
        # What came late is counted by whoever was the owner then: a busy machine has several.
        until(lambda: admin.list() == other.list())
        until(lambda: sum(each.owns for each in other.members().members) == 1)
        assert all(each.behind < 30 for each in other.members().members)
    assert "Traceback" not in owner.log


def test_a_member_with_other_keys_is_refused(cluster):
    cluster.start()
    cluster.environment["FCP_TOKEN_KEYS"] = f"deployment {'1' * 32},01 {'2' * 64}"
    second = Member(cluster)
    cluster.members.append(second)
    assert second.process.wait(WAIT) == 2
    assert "signs tokens with other keys" in second.log
    assert "Traceback" not in second.log


# Small uploads are passed on to the owner; large ones are accumulated by whoever gets them.
@pytest.mark.parametrize("words", [WORDS, 64 * WORDS])
def test_a_rolling_restart_fails_no_device_request(cluster, words):
    for _ in range(2):
        cluster.start(*STEADY)
    with cluster.members[0].admin() as admin:
        task = admin.submit(fleet_task(40, words=words)).task_id
    # Each request is sent once: one that fails would end its device's session.
    fleet = Fleet(cluster.balancer.url, attempts=1, words=words, compress=False)
    try:
        for number, old in enumerate(list(cluster.members)):
            until(lambda wanted=8 * (number + 1): len(fleet.accepted) >= wanted)
            # As a load balancer does that asks /readyz: no new connections.
            cluster.balancer.ports.remove(old.address)
            assert old.terminate() == 0
            assert "Traceback" not in old.log
            cluster.start(*STEADY)
        new = cluster.members[-1]
        with new.admin() as admin:
            until(lambda: admin.get(task).is_final)
    finally:
        fleet.stop()
    assert fleet.failed == []
    with new.admin() as admin:
        ended = admin.get(task)
        fleet.check(admin.result(task), ended.contributed, ended.surplus)


def test_members_of_several_processes_find_each_other(cluster):
    """Each process of a member knows whose population is whose."""
    for _ in range(2):
        cluster.start("-s", "server.processes=2", *STEADY)
    with cluster.members[0].admin() as admin:
        populations = spread([each.member_id for each in admin.members().members], 3)
        tasks = {name: admin.submit(fleet_task(3, name)).task_id for name in populations}
        assert {each.owns for each in admin.members().members} == {3}
        fleets = {name: Fleet(cluster.balancer.url, name, threads=1) for name in populations}
        try:
            for task in tasks.values():
                until(lambda task=task: admin.get(task).is_final)
        finally:
            for fleet in fleets.values():
                fleet.stop()
        for name, task in tasks.items():
            ended = admin.get(task)
            assert fleets[name].failed == []
            fleets[name].check(admin.result(task), ended.contributed, ended.surplus)
    for member in cluster.members:
        assert member.terminate() == 0
        assert "Traceback" not in member.log


def test_the_database_is_killed_and_its_owner_goes_on(cluster, fcp_postgres_server):
    member = cluster.start()

    def crash(owner):
        with fcp_postgres_server.down():
            until(lambda: "could not be renewed in time" in owner.log)
            assert not ready(owner)
        until(lambda: ready(owner))

    with member.admin() as admin:
        task = admin.submit(fleet_task(24)).task_id
        fleet = Fleet(cluster.balancer.url)
        try:
            until(lambda: len(fleet.accepted) >= 6)
            crash(member)
            until(lambda: admin.get(task).is_final)
        finally:
            fleet.stop()
        ended = admin.get(task)
        assert ended.state == "completed"
        fleet.check(admin.result(task), ended.contributed, ended.surplus)
        # Nobody had taken it, so what it knew is as good as before.
        assert [lease.epoch for lease in admin.members().leases] == [1]
    assert "is renewed" in member.log


def ready(member):
    """Whether a member says that it takes devices."""
    answer = urllib3.request("GET", f"{member.url}readyz", timeout=WAIT, retries=False)
    return answer.status == 200
