"""How a server begins and ends: sockets, TLS, start-up failures, threads."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.server import Server, ServerThread
from fcp_core.server.http.tls import server_context

WAIT = 30.0


class Hooks:
    """Records the life cycle; fails at start-up if it is told to."""

    def __init__(self, failure=None):
        self.calls = []
        self.failure = failure

    @hookimpl
    async def fcp_startup(self, config):
        self.calls.append("startup")
        if self.failure is not None:
            raise self.failure

    @hookimpl
    def fcp_shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture
def load(tmp_path):
    def load(*extra, **overrides):
        return Plugins.load(environ={}, extra=extra, overrides=overrides, working_folder=tmp_path)

    return load


@pytest.fixture
def make(load):
    made = []

    def make(*extra, overrides=None, **arguments):
        thread = ServerThread(Server(load(*extra, **(overrides or {})), **arguments))
        made.append(thread)
        return thread

    yield make
    for thread in made:
        thread.stop()


def healthy(url, **pool):
    with urllib3.PoolManager(retries=False, timeout=WAIT, **pool) as client:
        return client.request("GET", url + "healthz").data == b"ok\n"


def refuses(port):
    try:
        socket.create_connection(("localhost", port), timeout=WAIT).close()
    except ConnectionRefusedError:
        return True
    return False


def test_life_of_a_thread(make):
    hooks = Hooks()
    thread = make(hooks)
    with thread as entered:
        assert entered is thread
        assert healthy(thread.server.url)
        assert hooks.calls == ["startup"]

        async def where():
            return threading.current_thread()

        assert thread.run(where()).result(WAIT) is not threading.current_thread()
    assert hooks.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)
    thread.stop()
    assert hooks.calls == ["startup", "shutdown"]
    with pytest.raises(RuntimeError, match="starts once"):
        thread.start()
    with pytest.raises(RuntimeError, match="not running"):
        thread.run(where())


def test_a_server_that_never_started_gives_its_port_back(make):
    hooks = Hooks()
    thread = make(hooks)
    port = thread.server.port
    thread.stop()
    thread.stop()
    assert hooks.calls == []
    assert refuses(port)
    work = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="not running"):
        thread.run(work)


def test_a_failing_start_is_raised_in_the_caller(make):
    before, hooks = Hooks(), Hooks(failure=OSError("the disk is full"))
    thread = make(before, hooks)
    with pytest.raises(UsageError, match="the disk is full"):
        thread.start()
    assert before.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)


def test_a_failing_storage_stops_the_plugins_again(make, tmp_path):
    hooks = Hooks()
    thread = make(hooks)

    async def fail():
        raise UsageError("no storage")

    thread.server.services.start = fail
    with pytest.raises(UsageError, match="no storage"):
        thread.start()
    assert hooks.calls == ["startup", "shutdown"]
    assert refuses(thread.server.port)


def test_a_server_starts_once(load):
    async def main():
        server = Server(load())
        await server.start()
        with pytest.raises(RuntimeError, match="starts once"):
            await server.start()
        await server.stop()
        await server.stop()

    asyncio.run(main())


def test_stopping_from_the_servers_own_thread(make):
    thread = make()
    thread.start()

    async def stop():
        thread.stop()

    thread.run(stop()).result(WAIT)
    thread.stop()
    assert refuses(thread.server.port)


def test_a_request_that_hangs_does_not_keep_the_server(make, http):
    thread = make(overrides={"drain_timeout": "0s"}, populations=["p"])
    entered = threading.Event()

    async def hang(request, caller):
        entered.set()
        await asyncio.Event().wait()

    thread.server.services.eligibility_eval_tasks.request_eligibility_eval_task = hang
    thread.start()
    with http.Connection(thread.server.port) as connection:
        connection.send(http.head("/v1/eligibilityevaltasks/p:request", Content_Length=0))
        assert entered.wait(WAIT)
        thread.stop()
        reply = connection.reply()
    answer = eets.EligibilityEvalTaskResponse.FromString(reply.body)
    assert (reply.status, answer.WhichOneof("result")) == (200, "rejection_info")
    assert refuses(thread.server.port)


def test_a_port_that_is_taken(make, load):
    port = make().server.port
    with pytest.raises(UsageError, match=f"localhost, port {port}: .*in use"):
        Server(load(), port=port)
    with pytest.raises(UsageError, match=r"cannot listen on no\.such\.host\.invalid"):
        Server(load(), host="no.such.host.invalid")


def test_two_servers_share_a_port(make):
    first = make(reuse_port=True)
    second = make(reuse_port=True, port=first.server.port)
    first.start()
    second.start()
    assert healthy(first.server.url)
    first.stop()
    assert healthy(second.server.url)


@pytest.mark.parametrize("host", ["localhost", "", "127.0.0.1"])
def test_devices_of_the_same_machine_are_told_localhost(make, host):
    thread = make(host=host)
    assert thread.server.url == f"http://localhost:{thread.server.port}/"
    thread.start()
    assert healthy(thread.server.url)


def test_one_address_family(make):
    thread = make(address_family=socket.AF_INET)
    thread.start()
    assert healthy(f"http://127.0.0.1:{thread.server.port}/")


def test_an_external_url_is_what_devices_are_told(make, make_device, sum_task):
    thread = make(external_url="https://fcp.example.org/base", populations=["p"])
    assert thread.server.url == "https://fcp.example.org/base/"
    thread.start()
    thread.run(thread.server.services.tasks.submit(sum_task("p"))).result(WAIT)
    device = make_device(f"http://localhost:{thread.server.port}", "p")
    device.check_in()
    assert device.forwarding.target_uri_prefix == "https://fcp.example.org/base/"


@pytest.mark.parametrize("url", ["fcp.example.org", "ftp://fcp.example.org", "https://a/?q=1", ""])
def test_an_external_url_that_is_none(load, url):
    with pytest.raises(UsageError, match="external URL"):
        Server(load(), external_url=url)


def test_devices_refuse_plain_http_from_elsewhere(load, caplog):
    server = Server(load(), external_url="http://fcp.example.org")
    asyncio.run(server.stop())
    assert "devices refuse http://fcp.example.org" in caplog.text


def test_limits_that_contradict_each_other(load):
    with pytest.raises(UsageError, match=r"max_body \(2000.*max_in_flight \(1000") as caught:
        Server(load(max_in_flight=1000, max_body=2000, max_decompressed=10))
    assert "overrides: max_body" in str(caught.value)


# TLS.


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
def test_a_round_over_tls(make, make_device, tls, files, sum_task):
    paths = dict(zip(("certfile", "keyfile"), (tls / name for name in files), strict=False))
    thread = make(**paths)
    assert thread.server.url == f"https://localhost:{thread.server.port}/"
    thread.start()
    tasks = thread.server.services.tasks
    task_id = thread.run(tasks.submit(sum_task(goal=1))).result(WAIT)
    device = make_device(thread.server.url, "people", ca=str(tls / "cert.pem"))
    device.contribute(write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1"))
    assert device.forwarding.target_uri_prefix == thread.server.url
    assert thread.run(tasks.wait(task_id)).result(WAIT)


def test_old_tls_and_plain_http_are_refused(make, tls, http):
    thread = make(certfile=tls / "cert.pem", keyfile=tls / "key.pem")
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


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_every_interface_without_an_address_for_devices_warns(load, make, caplog, host):
    make(host=host)
    assert "set external_url" in caplog.text
    caplog.clear()
    make(host=host, external_url="https://fcp.example.org/")
    make(host="localhost")
    assert "set external_url" not in caplog.text


@pytest.mark.parametrize(("known", "name"), [(True, "localhost"), (False, "[::1]")])
def test_an_ipv6_address_may_stand_in_brackets(make, monkeypatch, known, name):
    """Devices are told a name that leads to it: some machines have localhost for IPv4 only."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host != "localhost":
            return look_up(host, *arguments, **options)
        if not known:
            raise socket.gaierror
        return look_up("::1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    thread = make(host="[::1]")
    with socket.create_connection(("::1", thread.server.port), timeout=WAIT):
        assert thread.server.url == f"http://{name}:{thread.server.port}/"


def test_probes_see_a_stop_that_is_announced(make, http):
    thread = make(overrides={"drain_notice": "3s"})
    thread.start()

    def ready():
        with http.Connection(thread.server.port) as connection:
            connection.send(http.head("/readyz", "GET"))
            return connection.reply().status

    assert ready() == 200
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(thread.stop)
        while not thread.server._frontend._context.stopping:
            time.sleep(0.01)
        assert ready() == 503
        stopping.result(WAIT)
    assert refuses(thread.server.port)
