"""Two members of a server: devices and programs call either."""

from __future__ import annotations

from fcp_core.admin import AdminClient
from fcp_core.client import Outcome
from tests.members.shared import owned, sum_task, until

POPULATIONS = [f"p{number}" for number in range(8)]


def admin(server):
    return AdminClient(server.url, "a-secret-of-members")


def device(fcp_client, server, value, population):
    return fcp_client(server, {"v": [value]}, population=population)


def test_a_task_is_submitted_and_served_at_any_member(member, fcp_client):
    one, two = member(), member()
    with admin(one) as first, admin(two) as second:
        tasks = {name: first.submit(sum_task(2, name)).task_id for name in POPULATIONS}
        # Both got some, as rendezvous hashing has it.
        until(lambda: sorted(owned(one) + owned(two)) == POPULATIONS)
        assert owned(one)
        assert owned(two)
        for name, task in tasks.items():
            for number, server in enumerate((one, two)):
                outcome = device(fcp_client, server, 2**number, name).run_once()
                assert outcome.outcome is Outcome.CONTRIBUTED, outcome
            for client in (first, second):
                assert client.wait(task).state == "completed"
                assert client.get(task).contributed == 2
        for client in (first, second):
            assert [task.population for task in client.list()] == POPULATIONS
            assert client.status().tasks == {"completed": 8}
            assert [one.name for one in client.populations().populations] == POPULATIONS
            assert client.result(tasks["p0"]) == first.result(tasks["p0"])
        second.forget(tasks["p0"])
        assert len(first.list()) == 7
