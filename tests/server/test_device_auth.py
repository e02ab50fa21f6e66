"""Who may speak to the server: API keys, client certificates, rate limits, tokens."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from contextlib import suppress

import numpy as np
import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.client import CallableStore, Client, make_query_result
from fcp_core.client.transport import RetryPolicy
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.token_parts import principal_of, sender_of
from fcp_core.server import Server, ServerThread
from fcp_core.server.http.limits import Limits
from fcp_core.server.http.rates import RateLimit, RateLimitError, address_key
from fcp_core.tasks.taskfile import parse_task
from fcp_plugins.api_keys import LOOK, APIKeys, read_keys

WAIT = 30.0
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
BODY = write_checkpoint({"update": np.ones(3, np.float32)}, "tf_v1")


class Time:
    """A clock that a test turns."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def line(key, name):
    return f"{hashlib.sha256(key.encode()).hexdigest()}  {name}\n"


@pytest.fixture
def make_server(tmp_path):
    running = []

    def make(overrides=None, **arguments):
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        thread = ServerThread(Server(plugins, **arguments))
        running.append(thread)
        thread.start()
        return thread

    yield make
    for thread in running:
        thread.stop()


def submit(thread, spec):
    return thread.run(thread.server.services.tasks.submit(spec)).result(WAIT)


def wait(thread, task_id):
    return thread.run(thread.server.services.tasks.wait(task_id)).result(WAIT)


# API keys.


@pytest.fixture
def plugin(tmp_path):
    """The plugin with two keys, its file and its clock."""
    path, time = tmp_path / "keys", Time()
    path.write_text("# ours\n\n" + line("first", "one app") + line("second", "two"))
    plugin = APIKeys(time)
    plugins = Plugins.load(
        environ={},
        extra=[plugin],
        overrides={"api_keys.file": str(path)},
        working_folder=tmp_path,
    )
    plugin.fcp_startup(plugins.config)
    return plugin, path, time


def ask(plugin, key, certificate=None):
    headers = {} if key is None else {"x-goog-api-key": key}
    try:
        return plugin.fcp_authenticate(headers, certificate)
    except StatusError as error:
        return error.code


def test_a_key_is_known_by_its_hash(plugin):
    plugin, _, _ = plugin
    assert ask(plugin, "first") == "key:one app"
    assert ask(plugin, "second") == "key:two"
    assert ask(plugin, "third") is Code.PERMISSION_DENIED
    assert ask(plugin, hashlib.sha256(b"first").hexdigest()) is Code.PERMISSION_DENIED
    assert ask(plugin, "") is ask(plugin, None) is Code.UNAUTHENTICATED
    assert ask(plugin, None, {"subject": ()}) is Code.UNAUTHENTICATED
    assert ask(plugin, "ü\ud800") is Code.PERMISSION_DENIED
    assert "first" not in repr(vars(plugin))


def test_the_file_is_read_again_when_it_changes(plugin, caplog):
    plugin, path, time = plugin
    path.write_text(line("third", "three"))
    assert ask(plugin, "first") == "key:one app"  # it is not looked at with every request
    time.now += LOOK
    assert ask(plugin, "first") is Code.PERMISSION_DENIED
    assert ask(plugin, "third") == "key:three"
    for broken in ("not hashed\n", None):
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        time.now += LOOK
        assert ask(plugin, "third") == "key:three"
        assert "the keys stay as they were" in caplog.text
        assert "not hashed" not in caplog.text
        caplog.clear()
    path.write_text(line("first", "one"))
    time.now += LOOK
    with caplog.at_level("INFO", "fcp.api_keys"):
        assert ask(plugin, "first") == "key:one"
        assert "1 keys were read again" in caplog.text
        caplog.clear()
        time.now += 10 * LOOK
        assert ask(plugin, "first") == "key:one"
        assert caplog.text == ""  # it was looked at, and is the same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        (b"\xff", "cannot be read"),
        ("secret\n", "line 1"),
        ("# x\n" + "0" * 64 + "\n", "line 2"),
        ("0" * 63 + " name\n", "line 1"),
    ],
)
def test_a_file_that_does_not_do(tmp_path, text, said):
    path = tmp_path / "keys"
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)


def test_without_a_file_it_does_not_start(make_server):
    with pytest.raises(UsageError, match=r"\[fcp:api_keys\] file is not set"):
        make_server({"plugins": "fcp_plugins.api_keys:APIKeys"})


def test_only_those_with_a_key_take_part(make_server, make_device, sum_task, tmp_path):
    (tmp_path / "keys").write_text(line("key", "the app") + line("other key", "other"))
    thread = make_server(
        {"plugins": "fcp_plugins.api_keys:APIKeys", "api_keys.file": str(tmp_path / "keys")}
    )
    task_id = submit(thread, sum_task(goal=1))
    device = make_device(thread.server.url, "people")  # sends "key"
    task, _, _ = device.assignment()
    send = device.send

    def as_other(key):
        def send_as(method, base, path, body=None, headers=None):
            return send(method, base, path, body, {**(headers or {}), "x-goog-api-key": key})

        return send_as

    for key, status in (("wrong", 403), ("", 401)):
        device.send = as_other(key)
        for step in (
            device.check_in,
            lambda: device.start_upload(task),
            lambda: device.report(task),
        ):
            with pytest.raises(make_device.Refused) as caught:
                step()
            assert caught.value.status == status
    # A session belongs to the key that opened it.
    device.send = as_other("other key")
    with pytest.raises(make_device.Refused) as caught:
        device.report(task)
    assert caught.value.status == 403
    device.send = send
    upload = device.start_upload(task)
    device.send = as_other("wrong")
    with pytest.raises(make_device.Refused) as caught:
        device.upload(upload, BODY)
    assert caught.value.status == 403
    device.send = send
    device.upload(upload, BODY)
    device.submit(task, upload)
    assert wait(thread, task_id)


# Rate limits.


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60))
def test_no_more_than_the_burst_and_the_rate_get_through(requests):
    time = Time()
    limit = RateLimit("address", 2.0, 3, time=time)
    passed = {"a": [], "b": []}
    for key, pause in requests:
        time.now += pause
        try:
            limit.take(key)
        except RateLimitError as error:
            # Who waits as long as it is told is let through.
            later = RateLimit("address", 2.0, 3, time=time)
            later._buckets.update(limit._buckets)
            time.now, before = time.now + error.wait, time.now
            later.take(key)
            time.now = before
        else:
            passed[key].append(time.now)
    for times in passed.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                span = times[last] - times[first]
                assert last - first + 1 <= 3 + 2.0 * span + 1e-6


def test_a_refusal_says_how_long_to_wait():
    limit = RateLimit("address", 0.25, 1, time=Time())
    limit.take("a")
    with pytest.raises(RateLimitError, match="come back in 4 s") as caught:
        limit.take("a")
    assert (caught.value.http, caught.value.wait) == (429, 4)


def test_buckets_are_bounded_and_off_by_default():
    limit = RateLimit("address", 1.0, 1, bound=100, time=Time())
    for number in range(1000):
        limit.take(str(number))
    assert len(limit) == 100
    with pytest.raises(RateLimitError):
        limit.take("999")
    off = RateLimit("address", 0.0, 1)
    for _ in range(1000):
        off.take("x")
    assert len(off) == 0


def test_addresses_of_one_network_are_one():
    assert address_key("2001:db8:1:2::1") == address_key("2001:db8:1:2:ffff::9")
    assert address_key("2001:db8:1:2::1") != address_key("2001:db8:1:3::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1") != address_key("10.0.0.2")
    assert address_key("fe80::1%eth0") == address_key("fe80::1")
    assert address_key("/run/socket") == "/run/socket"


CALL = "/v1/eligibilityevaltasks/p:request?%24alt=proto"


@pytest.mark.parametrize("what", ["address", "key"])
def test_who_asks_too_often_is_told_when_to_come_back(make_front, http, what, caplog):
    front = make_front(**{f"rate_per_{what}": 0.001, f"burst_per_{what}": 3})
    head = http.head(CALL, Content_Length=0, X_Goog_Api_Key="k")
    assert [front.ask(head).status for _ in range(3)] == [501] * 3  # no such service here
    reply = front.ask(head)
    assert (reply.status, reply.error[0]) == (429, Code.RESOURCE_EXHAUSTED)
    assert int(reply.headers["Retry-After"]) > 900
    other = front.ask(http.head(CALL, Content_Length=0, X_Goog_Api_Key="other"))
    assert other.status == (501 if what == "key" else 429)
    # The operator is told as well, but not each time.
    assert front.ask(head).status == 429
    said = [line for line in caplog.messages if f"(rate_per_{what})" in line]
    assert len(said) == 1
    assert said[0].startswith("a device is turned away: ")
    if what == "address":
        assert front.ask(http.head("/data/x/y", "GET"), method="GET").status == 429
    assert front.ask(http.head("/healthz", "GET"), method="GET").status == 200


# Client certificates.


def certificate_of(folder, name, issuer=None, ca=False):
    """Write a certificate and its key; return what signs others."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    signer, signer_key = issuer or (subject, key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), True)
        .sign(signer_key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return subject, key


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtls")
    certificate_of(folder, "localhost", ca=True)
    authority = certificate_of(folder, "devices", ca=True)
    certificate_of(folder, "device", authority)
    certificate_of(folder, "other device", authority)
    certificate_of(folder, "stranger")
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
    assert wait(thread, task_id)


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
    assert wait(thread, task_id)


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
    assert dict(open_checkpoint(wait(thread, task_id)))["n"].tolist() == [7]
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
        shown = x509.load_pem_x509_certificate((tls / f"{name}.pem").read_bytes())
        one = x509.RevokedCertificateBuilder().serial_number(shown.serial_number)
        listed = listed.add_revoked_certificate(one.revocation_date(now).build())
    encoded = listed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return (tls / "enrolled.pem").read_bytes() + encoded


def test_a_revoked_certificate_is_refused_once_the_file_is_read_again(make_server, tls, tmp_path):
    authority = certificate_of(tls, "enrolled", ca=True)
    for name in ("first", "second"):
        certificate_of(tls, name, authority)
    path = tmp_path / "client-ca.pem"
    path.write_bytes((tls / "enrolled.pem").read_bytes())
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


# Tokens.


def test_tokens_belong_to_their_task_and_repeats_change_nothing(make_server, make_device, sum_task):
    thread = make_server()
    ids = [submit(thread, sum_task(goal=1, name=name)) for name in ("a", "b")]
    devices = [make_device(thread.server.url, "people") for _ in ids]
    tasks = [device.assignment()[0] for device in devices]
    first, second = tasks
    assert first.aggregation_id != second.aggregation_id

    def refused(step, *arguments):
        with pytest.raises(make_device.Refused) as caught:
            step(*arguments)
        return caught.value.code

    # An authorization token of one task does not open another.
    assert refused(devices[0].start_upload, first, second.authorization_token) is (
        Code.UNAUTHENTICATED
    )
    uploads = [device.start_upload(task) for device, task in zip(devices, tasks, strict=True)]
    assert devices[0].start_upload(first) == uploads[0]
    names = [upload.resource.resource_name for upload in uploads]
    # A device that knows its own name cannot make another's out of it.
    guess = names[0][:80] + names[1][80:]
    uploads[0].resource.resource_name = guess
    assert refused(devices[0].upload, uploads[0], BODY) is Code.UNAUTHENTICATED
    uploads[0].resource.resource_name = names[0]
    for device, task, upload in zip(devices, tasks, uploads, strict=True):
        device.upload(upload, BODY)
        device.upload(upload, BODY)
        assert refused(device.submit, task, upload, names[1 - tasks.index(task)]) is (
            Code.INVALID_ARGUMENT
        )
    client = uploads[0].client_token
    uploads[0].client_token = uploads[1].client_token
    assert refused(devices[0].submit, first, uploads[0]) is Code.UNAUTHENTICATED
    uploads[0].client_token = client
    for device, task, upload in zip(devices, tasks, uploads, strict=True):
        device.submit(task, upload)
    for task_id in ids:
        assert wait(thread, task_id)


def test_upload_names_cannot_be_guessed(make_server, make_device, sum_task):
    thread = make_server()
    submit(thread, sum_task(goal=8))
    secrets = []
    for _ in range(8):
        device = make_device(thread.server.url, "people")
        task, _, _ = device.assignment()
        upload = device.start_upload(task)
        names = (task.authorization_token, upload.client_token, upload.resource.resource_name)
        secrets += names
        for name in names:
            for cut in (
                name[:-1],
                name[:-22],
                name + "A",
                name[:-1] + ("A" if name[-1] != "A" else "B"),
            ):
                upload.resource.resource_name = cut
                with pytest.raises(make_device.Refused) as caught:
                    device.upload(upload, BODY)
                assert caught.value.code is Code.UNAUTHENTICATED
    assert len(set(secrets)) == len(secrets)
    for column in range(1, 22):  # 128 bits of signature, no part of which stays the same
        assert len({secret[-column] for secret in secrets}) > 4


def test_tokens_are_nowhere_at_rest(make_server, make_device, sum_task, tmp_path):
    path = tmp_path / "fcp.db"
    thread = make_server({"storage": "sqlite", "storage.sqlite.path": str(path)})
    submit(thread, sum_task(goal=3))
    secrets = []
    for _ in range(2):
        device = make_device(thread.server.url, "people")
        task, _, _ = device.assignment()
        upload = device.start_upload(task)
        device.upload(upload, BODY)
        device.submit(task, upload)
        secrets += [
            task.authorization_token,
            upload.client_token,
            upload.resource.resource_name,
        ]
    waiting, _, _ = make_device(thread.server.url, "people").assignment()
    secrets.append(waiting.authorization_token)
    thread.stop()
    files = [file for file in tmp_path.iterdir() if file.name.startswith("fcp.db")]
    stored = b"".join(file.read_bytes() for file in files)
    # The task is there, so this looks in the right place.
    assert waiting.aggregation_id.encode() in stored
    hashed = [hashlib.sha256(secret.encode()).hexdigest() for secret in secrets]
    assert [secret for secret in hashed if secret.encode() in stored] == []
    assert [secret for secret in secrets if secret.encode() in stored] == []


@pytest.mark.parametrize(
    ("rates", "bursts"),
    [
        ({}, (100, 1000)),
        ({"rate_per_address": 2, "rate_per_key": 50}, (100, 1000)),
        ({"rate_per_address": 25.05, "rate_per_key": 200}, (251, 2000)),
    ],
)
def test_a_burst_follows_from_its_rate(rates, bursts):
    limits = Limits.from_config(Plugins.load(environ={}, overrides=rates).config)
    assert (limits.burst_per_address, limits.burst_per_key) == bursts
