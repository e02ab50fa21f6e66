"""SIGTERM keeps what was contributed; SIGHUP reads certificates and keys again."""

import shutil
import signal
import socket
import ssl
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_stop_keeps_what_was_contributed(make_host, spec, rows, until):
    host = make_host("retry_min=0s", "retry_max=0s")
    host.start()
    until(lambda: " implements " in host.log.read_text(), "its first words")
    host.process.send_signal(signal.SIGHUP)  # it has not started yet, and must not end by that
    until(lambda: host.ready()[0] == 200, "the server")
    with host.admin() as admin:
        task = admin.submit(spec(10)).task_id
        names = [str(number) for number in range(10)]
        assert [host.device(name) for name in names[:7]] == ["CONTRIBUTED"] * 7
        assert host.terminate() == 0
        host.start()
        until(lambda: host.ready()[0] == 200, "the server")
        status = admin.get(task)
        assert (status.state, status.contributed, status.assigned) == ("open", 7, 7)
        assert [host.device(name) for name in names[7:]] == ["CONTRIBUTED"] * 3
        assert admin.wait(task).state == "completed"
        assert rows(admin.result(task)) == dict.fromkeys(names, 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_hangup_reads_certificates_and_keys_again(make_host, certificates, until, processes):
    host = make_host(f"server.processes={processes}")
    pem = host.folder / "server.pem"
    shutil.copy(certificates / "server.pem", pem)
    host.options += ["--set", f"server.certfile={pem}"]
    host.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates / "authority.pem")

    def subjects():
        """Which names the server shows, at several connections: each may be another process."""
        assert host.process.poll() is None, host.log.read_text()
        found = set()
        for _ in range(16):
            try:
                with (
                    socket.create_connection(("localhost", host.port), 60) as connection,
                    context.wrap_socket(connection, server_hostname="localhost") as secure,
                ):
                    found.add(dict(secure.getpeercert()["subject"][0])["commonName"])
            except OSError:
                found.add(None)
        return found

    def log():
        return host.log.read_text()

    until(lambda: subjects() == {"server"}, "the server")
    shutil.copy(certificates / "operator.pem", pem)
    rotate = [sys.executable, "-m", "fcp_core", "keys", "rotate"]
    subprocess.run(rotate, cwd=host.folder, check=True, capture_output=True)
    assert subjects() == {"server"}
    host.process.send_signal(signal.SIGHUP)
    until(lambda: subjects() == {"operator"}, "the new certificate")
    until(lambda: "the keys that sign tokens: read again" in log(), "the new keys")
    pem.write_text("no certificate")
    keys = host.folder / "fcp.sqlite.keys"
    keys.chmod(0o666)
    host.process.send_signal(signal.SIGHUP)
    until(lambda: "keys that sign tokens: not read again, the old one stays" in log(), "an error")
    assert "the certificate: not read again, the old one stays" in log()
    assert subjects() == {"operator"}
