"""A server with a certificate, and certificates that do not do."""

from __future__ import annotations

import os
import socket
import ssl

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.server import Server
from fcp_core.server.http.tls import server_context
from tests.certificates import PEM, PKCS8, make_certificate
from tests.server.fronts import WAIT
from tests.server.servers import healthy


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A folder with a certificate for localhost, its key, and keys that do not do."""
    folder = tmp_path_factory.mktemp("tls")
    _, key = make_certificate(folder, "localhost")
    make_certificate(folder, "other")
    locked = key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret"))
    (folder / "locked.key").write_bytes(locked)
    (folder / "text.pem").write_text("hello")
    return folder


@pytest.mark.parametrize("files", [("localhost.crt", "localhost.key"), ("localhost.pem",)])
def test_a_round_over_tls(new_server, make_device, tls, files, sum_task):
    paths = dict(zip(("certfile", "keyfile"), (tls / name for name in files), strict=False))
    thread = new_server(**paths)
    assert thread.server.url == f"https://localhost:{thread.server.port}/"
    thread.start()
    tasks = thread.server.services.tasks
    task_id = thread.run(tasks.submit(sum_task(goal=1))).result(WAIT)
    device = make_device(thread.server.url, "people", ca=str(tls / "localhost.crt"))
    device.contribute(write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1"))
    assert device.forwarding.target_uri_prefix == thread.server.url
    assert thread.run(tasks.wait(task_id)).result(WAIT)


def test_old_tls_and_plain_http_are_refused(new_server, tls, http):
    thread = new_server(certfile=tls / "localhost.crt", keyfile=tls / "localhost.key")
    thread.start()
    assert healthy(thread.server.url, ca_certs=str(tls / "localhost.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls / "localhost.crt")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("localhost", thread.server.port), timeout=WAIT) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    with http.Connection(thread.server.port) as connection:
        connection.send(http.head("/healthz", "GET"))
        assert connection.is_closed()
    assert healthy(thread.server.url, ca_certs=str(tls / "localhost.crt"))


@pytest.mark.parametrize(
    ("certfile", "keyfile", "said"),
    [
        ("none.crt", "localhost.key", "certificate file .*none.crt cannot be read: No such file"),
        ("localhost.crt", "none.key", "key file .*none.key cannot be read: No such file"),
        ("localhost.crt", "other.key", "other.key does not belong to the certificate"),
        ("localhost.crt", "locked.key", "locked.key is protected by a passphrase"),
        ("localhost.crt", "text.pem", "must be PEM"),
        ("text.pem", "localhost.key", "must be PEM"),
        ("localhost.crt", None, "must be PEM, and the key must be there"),
        (None, "localhost.key", "localhost.key needs a certificate"),
        ("", "localhost.key", "cannot be read: Is a directory"),
    ],
)
def test_certificates_that_do_not_do(load, tls, certfile, keyfile, said):
    arguments = {
        name: os.path.join(tls, path)
        for name, path in (("certfile", certfile), ("keyfile", keyfile))
        if path is not None
    }
    with pytest.raises(UsageError, match=said):
        Server(load(), **arguments)


@pytest.mark.parametrize(
    ("days", "said"),
    [
        ((-2, -1), ["expired"]),
        ((1, 2), ["not yet valid"]),
        ((-90, 2), ["it ends in 48 hours"]),
        ((-90, 4), []),
        ((-1, 1), []),
    ],
)
def test_a_certificate_out_of_its_time_is_served_with_a_warning(load, tmp_path, caplog, days, said):
    make_certificate(tmp_path, "localhost", days=days)
    server_context(tmp_path / "localhost.pem")
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(said)
    assert all(word in warning for word, warning in zip(said, warnings, strict=True))
