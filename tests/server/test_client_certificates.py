"""Devices that show a certificate."""

from __future__ import annotations

import datetime
import ssl
from contextlib import suppress

import numpy as np
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.client.transport import RetryPolicy
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import Code
from fcp_core.rounds.token_parts import principal_of, sender_of
from fcp_core.tasks.taskfile import parse_task
from tests.certificates import PEM, make_certificate
from tests.server.fronts import WAIT
from tests.server.servers import BODY, line, result, submit

COUNT = """
[task]
population = "people"
name = "count"
goal_count = 1
[[query]]
collection_uri = "app:/n"
[query.vectors]
n = "int64"
[result]
sum = ["n"]
"""


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtls")
    make_certificate(folder, "localhost")
    authority = make_certificate(folder, "devices")
    make_certificate(folder, "device", authority)
    make_certificate(folder, "other device", authority)
    make_certificate(folder, "stranger")
    (folder / "text.pem").write_text("hello")
    return folder


def pool(tls, name=None):
    files = {}
    if name is not None:
        files = {"cert_file": str(tls / f"{name}.pem"), "key_file": str(tls / f"{name}.key")}
    ca = str(tls / "localhost.pem")
    return urllib3.PoolManager(ca_certs=ca, retries=False, timeout=WAIT, **files)


def secure(make_server, tls, **overrides):
    return make_server(
        {"client_ca": str(tls / "devices.pem"), **overrides},
        certfile=tls / "localhost.pem",
        keyfile=tls / "localhost.key",
    )


def test_required_certificates(make_server, make_device, sum_task, tls):
    thread = secure(make_server, tls)
    task_id = submit(thread, sum_task(goal=1))
    for name in (None, "stranger"):
        device = make_device(thread.server.url, "people")
        device.pool = pool(tls, name)
        with pytest.raises((urllib3.exceptions.HTTPError, ssl.SSLError, OSError)):
            device.check_in()
    device = make_device(thread.server.url, "people")
    device.pool = pool(tls, "device")
    device.contribute(BODY)
    assert result(thread, task_id)


def test_what_belongs_to_a_certificate_is_not_for_another(make_server, make_device, sum_task, tls):
    """The session, its operation and its tokens, even if all else is known."""
    thread = secure(make_server, tls)
    task_id = submit(thread, sum_task(goal=1))
    ours, other = (make_device(thread.server.url, "people") for _ in range(2))
    ours.pool, other.pool = pool(tls, "device"), pool(tls, "other device")
    ours.check_in()
    other.session_id, other.forwarding = ours.session_id, ours.forwarding
    base, operation = ours.forwarding.target_uri_prefix, f"v1/operations/{ours.session_id}"

    def refused(call, *arguments):
        with pytest.raises(make_device.Refused) as caught:
            call(*arguments)
        return caught.value.status

    assert refused(other.start) == 403
    assignment = ours.start()
    assert refused(other.send, "GET", base, operation) == 403
    assert refused(other.send, "POST", base, f"{operation}:cancel") == 403
    assert ours.send("GET", base, operation)
    assert refused(other.report, assignment, Code.INTERNAL) == 403
    assert refused(other.start_upload, assignment) == 403
    # The token is not used up by that.
    ticket = ours.start_upload(assignment)
    ours.upload(ticket, BODY)
    assert refused(other.submit, assignment, ticket) == 403
    ours.submit(assignment, ticket)
    assert result(thread, task_id)


def test_plugins_see_the_principal_and_not_the_certificate():
    assert sender_of("key:app", None) == "key:app"
    assert sender_of(None, None) is principal_of(None) is None
    bound = sender_of("key:app", b"der")
    assert bound not in {"key:app", sender_of("key:app", b"red"), sender_of(None, b"der")}
    assert principal_of(bound) == principal_of("key:app") == "key:app"
    assert principal_of(sender_of(None, b"der")) is None


def test_our_client_shows_its_certificate(make_server, tls):
    """A round through mutual TLS; without a right certificate the server cannot be used."""
    thread = secure(make_server, tls)
    task_id = submit(thread, parse_task(COUNT).to_spec())
    vectors = {"n": np.array([7], np.int64)}
    store = CallableStore(lambda selector: (), query=lambda query: make_query_result(vectors))

    def run(name, keyfile=True):
        files = {} if name is None else {"certfile": str(tls / f"{name}.pem")}
        if name is not None and keyfile:
            files["keyfile"] = str(tls / f"{name}.key")
        ca = str(tls / "localhost.pem")
        url = thread.server.url
        once = RetryPolicy(attempts=1)
        with Client(
            url, "people", stores={"app:/n": store}, ca_file=ca, retry=once, **files
        ) as client:
            return client.run_once().outcome.name

    assert run(None) == run("stranger") != "CONTRIBUTED"
    assert run("device") == "CONTRIBUTED"
    assert dict(open_checkpoint(result(thread, task_id)))["n"].tolist() == [7]
    with pytest.raises(UsageError, match=r"text\.pem cannot be used"):
        run("text", keyfile=False)


def test_optional_certificates_may_stand_for_a_key(
    make_server, make_device, sum_task, tls, tmp_path
):
    (tmp_path / "keys").write_text(line("key", "the app"))
    thread = secure(
        make_server,
        tls,
        client_certificates="optional",
        plugins="fcp_plugins.api_keys:APIKeys",
        **{"api_keys.file": str(tmp_path / "keys"), "api_keys.certificate_suffices": "true"},
    )
    submit(thread, sum_task(goal=10))

    def status(certificate, key):
        with pool(tls, certificate) as client:
            headers = {"x-goog-api-key": key}
            url = f"{thread.server.url}v1/eligibilityevaltasks/people:request"
            return client.request("POST", url, body=b"", headers=headers).status

    assert status("device", "") == 200
    assert status("device", "wrong") == 403
    assert status(None, "") == 401
    assert status(None, "key") == 200
    with pytest.raises((urllib3.exceptions.HTTPError, ssl.SSLError, OSError)):
        status("stranger", "key")


def revocations(tls, authority, number, *names):
    """Return an authority's certificate with its list of revoked ones, as PEM."""
    subject, key = authority
    now = datetime.datetime.now(datetime.timezone.utc)
    listed = x509.CertificateRevocationListBuilder().issuer_name(subject)
    listed = listed.last_update(now - datetime.timedelta(hours=9 - number))
    listed = listed.next_update(now + datetime.timedelta(days=1))
    listed = listed.add_extension(x509.CRLNumber(number), critical=False)
    for name in names:
        shown = x509.load_pem_x509_certificate((tls / f"{name}.crt").read_bytes())
        one = x509.RevokedCertificateBuilder().serial_number(shown.serial_number)
        listed = listed.add_revoked_certificate(one.revocation_date(now).build())
    encoded = listed.sign(key, hashes.SHA256()).public_bytes(PEM)
    return (tls / "enrolled.crt").read_bytes() + encoded


def test_a_revoked_certificate_is_refused_once_the_file_is_read_again(make_server, tls, tmp_path):
    authority = make_certificate(tls, "enrolled")
    for name in ("first", "second"):
        make_certificate(tls, name, authority)
    path = tmp_path / "client-ca.pem"
    path.write_bytes((tls / "enrolled.crt").read_bytes())
    thread = secure(make_server, tls, client_ca=str(path))

    def let_in():
        found = []
        for name in ("first", "second"):
            with pool(tls, name) as client, suppress(urllib3.exceptions.HTTPError, OSError):
                client.request("GET", f"{thread.server.url}healthz")
                found.append(name)
        return found

    def read_again(content):
        async def reload():
            thread.server.reload()

        path.write_bytes(content)
        thread.run(reload()).result(WAIT)

    assert let_in() == ["first", "second"]
    read_again(revocations(tls, authority, 1))
    assert let_in() == ["first", "second"]
    read_again(revocations(tls, authority, 2, "first"))
    assert let_in() == ["second"]


def test_client_certificates_that_cannot_be_checked(make_server, tls, tmp_path):
    with pytest.raises(UsageError, match=r"client_ca \(from .*\) needs a server that speaks HTTPS"):
        make_server({"client_ca": str(tls / "devices.pem")})
    files = {"certfile": tls / "localhost.pem", "keyfile": tls / "localhost.key"}
    with pytest.raises(UsageError, match=r"client CA file .*text\.pem cannot be used"):
        make_server({"client_ca": str(tls / "text.pem")}, **files)
    with pytest.raises(UsageError, match=r"client CA file .*missing cannot be read"):
        make_server({"client_ca": str(tmp_path / "missing")}, **files)
