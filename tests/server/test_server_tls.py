"""A server with a certificate, and certificates that do not do."""

from __future__ import annotations

import datetime
import os
import socket
import ssl

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.server import Server
from fcp_core.server.http.tls import server_context
from tests.server.fronts import WAIT
from tests.server.servers import healthy


def write_key(path, key, passphrase=None):
    encryption = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A folder with a certificate for localhost, its key, and keys that do not do."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    write_key(folder / "key.pem", key)
    write_key(folder / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    write_key(folder / "locked.pem", key, b"secret")
    (folder / "both.pem").write_bytes((folder / "key.pem").read_bytes() + pem)
    (folder / "text.pem").write_text("hello")
    return folder


@pytest.mark.parametrize("files", [("cert.pem", "key.pem"), ("both.pem",)])
def test_a_round_over_tls(new_server, make_device, tls, files, sum_task):
    paths = dict(zip(("certfile", "keyfile"), (tls / name for name in files), strict=False))
    thread = new_server(**paths)
    assert thread.server.url == f"https://localhost:{thread.server.port}/"
    thread.start()
    tasks = thread.server.services.tasks
    task_id = thread.run(tasks.submit(sum_task(goal=1))).result(WAIT)
    device = make_device(thread.server.url, "people", ca=str(tls / "cert.pem"))
    device.contribute(write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1"))
    assert device.forwarding.target_uri_prefix == thread.server.url
    assert thread.run(tasks.wait(task_id)).result(WAIT)


def test_old_tls_and_plain_http_are_refused(new_server, tls, http):
    thread = new_server(certfile=tls / "cert.pem", keyfile=tls / "key.pem")
    thread.start()
    assert healthy(thread.server.url, ca_certs=str(tls / "cert.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls / "cert.pem")
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
    assert healthy(thread.server.url, ca_certs=str(tls / "cert.pem"))


@pytest.mark.parametrize(
    ("certfile", "keyfile", "said"),
    [
        ("none.pem", "key.pem", "certificate file .*none.pem cannot be read: No such file"),
        ("cert.pem", "none.pem", "key file .*none.pem cannot be read: No such file"),
        ("cert.pem", "other.pem", "other.pem does not belong to the certificate"),
        ("cert.pem", "locked.pem", "locked.pem is protected by a passphrase"),
        ("cert.pem", "text.pem", "must be PEM"),
        ("text.pem", "key.pem", "must be PEM"),
        ("cert.pem", None, "must be PEM, and the key must be there"),
        (None, "key.pem", "key.pem needs a certificate"),
        ("", "key.pem", "cannot be read: Is a directory"),
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
    ("days", "said"), [((-2, -1), ["expired"]), ((1, 2), ["not yet valid"]), ((-1, 1), [])]
)
def test_a_certificate_out_of_its_time_is_served_with_a_warning(load, tmp_path, caplog, days, said):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "both.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server_context(path)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(said)
    assert all(word in warning for word, warning in zip(said, warnings, strict=True))
