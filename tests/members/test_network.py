"""Three members in network namespaces, and what a cut between one of them and the database does.

It takes root, as in CI, and ``ip`` of iproute2.
"""

from __future__ import annotations

import contextlib

import pytest
import urllib3

from benchmarks.network import Network
from tests.members.cluster import Cluster, Fleet, fleet_task
from tests.members.shared import until

pytestmark = pytest.mark.slow


@pytest.fixture
def network(fcp_postgres_server):
    made = Network(f"{fcp_postgres_server.folder}/.s.PGSQL.{fcp_postgres_server.port}")
    yield made
    made.close()


@pytest.fixture
def cluster(network, fcp_postgres_schema, tmp_path):
    made = Cluster(tmp_path, network.url, fcp_postgres_schema())
    yield made
    made.close()


def is_ready(member):
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        answer = urllib3.request("GET", f"{member.url}readyz", timeout=5, retries=False)
        return answer.status == 200
    return False


def start(cluster, network, count):
    """Start members, each in a namespace; return the names of those by member."""
    places = {}
    for _ in range(count):
        name, address = network.add()
        where = ("-s", f"server.host={address}", "-s", f"server.member_address={address}:0")
        # One whose answers get lost gives its connections up: no test waits a minute for that.
        patience = ("-s", "storage.postgres.timeout=5s")
        inside = ("ip", "netns", "exec", name)
        member = cluster.start(*where, *patience, command=inside, host=address)
        places[member] = name
    return places


def test_a_member_that_is_cut_off_from_the_database_gives_way(cluster, network):
    places = start(cluster, network, 3)
    with cluster.members[0].admin() as admin:
        task = admin.submit(fleet_task(30)).task_id
    owner = cluster.owner("people")
    others = [member for member in cluster.members if member is not owner]
    fleet = Fleet(cluster.balancer.url)
    try:
        until(lambda: len(fleet.accepted) >= 6)
        network.cut(places[owner])
        until(lambda: "could not be renewed in time" in owner.log)
        until(lambda: not is_ready(owner))
        cluster.balancer.cut(owner)
        with others[0].admin() as admin:
            until(lambda: admin.get(task).is_final)
            (lease,) = admin.members().leases
        assert lease.epoch >= 2
        assert lease.pid in {member.process.pid for member in others}
    finally:
        fleet.stop()
    with others[1].admin() as admin:
        ended = admin.get(task)
        assert ended.state == "completed"
        fleet.check(admin.result(task), ended.contributed, ended.surplus)
        # It comes back without that population, and answers for it like any other.
        network.mend(places[owner])
        until(lambda: is_ready(owner))
        with owner.admin() as mended:
            assert mended.get(task) == ended
        until(lambda: len({each.behind < 5 for each in admin.members().members}) == 1)
    for member in cluster.members:
        assert "Traceback" not in member.log


def test_a_member_that_never_heard_of_a_population_asks_the_others(cluster, network):
    places = start(cluster, network, 2)
    there, cut = cluster.members
    with cut.admin() as admin:  # a busy machine is late with what it says of itself
        until(lambda: sum(each.lives for each in admin.members().members) == 2)
    network.cut(places[cut])
    until(lambda: "the storage does not answer" in cut.log)
    with there.admin() as admin:
        task = admin.submit(fleet_task(4)).task_id
        fleet = Fleet(cut.url)
        try:
            until(lambda: admin.get(task).is_final)
        finally:
            fleet.stop()
        assert fleet.failed == []
        ended = admin.get(task)
        fleet.check(admin.result(task), ended.contributed, ended.surplus)
    with cut.admin() as admin:
        assert admin.get(task) == ended
