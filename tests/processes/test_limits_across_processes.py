"""What holds for a server holds for all of its processes together."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from fcp_core.protocol import routes
from fcp_core.server.host_address import HOST
from fcp_core.server.processes.folds import WorkerFolds
from fcp_core.server.processes.remote_services import RemoteServices
from fcp_core.server.services.eligibility import ADDRESS


@pytest.fixture
def connect(certificates):
    """Connect to a process of a server, showing a certificate."""

    def connect(server, pid, name):
        context = ssl.create_default_context(cafile=certificates / "authority.pem")
        context.check_hostname = False  # it is that of "localhost"; a process has only an address
        context.load_cert_chain(certificates / f"{name}.pem")
        return server.to(pid, context)

    return connect


@pytest.mark.slow
def test_a_cap_and_a_certificate(serve, kit, certificates, connect):
    """One device at work at a time; and what it opened at one process is its own at another."""
    options = {"client_ca": str(certificates / "authority.pem"), "max_at_work": "1"}
    server = serve(2, options, certfile=certificates / "server.pem")
    one, other = (
        [connect(server, pid, name) for pid in server.pids] for name in ("device", "operator")
    )
    task = server.submit(2)
    first = kit.Device(1).assign(one[0])
    assert first.task.authorization_token
    for at in other:
        # There is room in the round, but none in the population.
        assert not kit.Device(2).check_in(at).session_id
        with pytest.raises(kit.Refused, match="403"):
            first.start(at)
    first.start(one[1]).upload(one[0])
    for at in other:
        with pytest.raises(kit.Refused, match="403"):
            first.submit(at)
    first.submit(one[1])
    kit.Device(2).contribute(other[1])
    assert server.total(task) == 3


def test_the_address_of_a_device_goes_with_its_call():
    """What one address holds, and how it reached the server, is looked at where it is decided."""
    sent = []

    class Recording:
        async def call(self, *arguments):
            sent.append(arguments)
            return b""

    async def main():
        route = routes.route(
            "google.internal.federatedcompute.v1.EligibilityEvalTasks",
            "RequestEligibilityEvalTask",
        )
        ADDRESS.set("203.0.113.9")
        HOST.set(("fcp.example", "https"))
        await RemoteServices(Recording(), WorkerFolds(None)).method(route)(
            route.request_class(), "sender"
        )

    asyncio.run(main())
    assert [call[-3:] for call in sent] == [("sender", "203.0.113.9", ("fcp.example", "https"))]
