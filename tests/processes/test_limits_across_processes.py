"""What holds for a server holds for all of its processes together."""

from __future__ import annotations

import ssl

import pytest


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
