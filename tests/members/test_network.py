"""Three members in network namespaces, and what a cut between one of them and the database does.

It takes root, as in CI, and ``ip`` of iproute2.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import threading

import pytest
import urllib3

from tests.members.cluster import Cluster, Fleet, _pump, fleet_task
from tests.members.shared import until

pytestmark = pytest.mark.slow


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A bridge of this host with namespaces on it; the database has an address of its own."""

    def __init__(self, socket_path):
        self.names = []
        self._socket = socket_path
        # One that nobody on this machine uses; its name is taken with it.
        for number in itertools.chain(range(os.getpid() % 250, 250), range(250)):
            self._net, self._tag = f"10.231.{number}", f"fcp231{number:03}"
            # Without an address of its own it has that of one of its ends, and another one when one
            # is added: whoever asked for it before is cut off then.
            link = ("link", "add", self._tag, "address", "02:00:00:00:00:02", "type", "bridge")
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*link)
                break
        else:
            ip(*link)
        # The first is where devices come from, the second the database's.
        for address in (f"{self._net}.1/24", f"{self._net}.2/24"):
            ip("addr", "add", address, "dev", self._tag)
        ip("link", "set", self._tag, "up")
        self._loop = asyncio.new_event_loop()
        self._relay = self._loop.run_until_complete(
            asyncio.start_server(self._connect, f"{self._net}.2", 0)
        )
        self.port = self._relay.sockets[0].getsockname()[1]
        self.url = f"postgresql://fcp@{self._net}.2:{self.port}/postgres?sslmode=disable"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self):
        """Make a namespace; return its name and its address."""
        number = len(self.names)
        name, inside, outside = (f"{self._tag}{kind}{number}" for kind in "xyz")
        address = f"{self._net}.{10 + number}"
        ip("netns", "add", name)
        self.names.append(name)
        ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        ip("link", "set", inside, "netns", name)
        ip("link", "set", outside, "master", self._tag)
        ip("link", "set", outside, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", inside)
        ip("-n", name, "link", "set", inside, "up")
        ip("-n", name, "link", "set", "lo", "up")
        return name, address

    def cut(self, name):
        """Let what a namespace sends to the database get lost on the way, without a word."""
        inside = name.replace("x", "y")
        nowhere = ("lladdr", "02:00:00:00:00:01", "dev", inside, "nud", "permanent")
        ip("-n", name, "neigh", "replace", f"{self._net}.2", *nowhere)

    def mend(self, name):
        """Let it come through again."""
        inside = name.replace("x", "y")
        ip("-n", name, "neigh", "del", f"{self._net}.2", "dev", inside)

    async def _connect(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there = await asyncio.open_unix_connection(self._socket)
            ways = [
                asyncio.create_task(_pump(*way)) for way in ((reader, there[1]), (there[0], writer))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                there[1].close()
                writer.close()

    def close(self):
        async def close():
            self._relay.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for name in self.names:
            ip("link", "del", name.replace("x", "z"))  # the namespace would let go of it later
            ip("netns", "del", name)
        ip("link", "del", self._tag)


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
        member = cluster.start(*where, command=("ip", "netns", "exec", name), host=address)
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
        assert lease.epoch == 2
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
