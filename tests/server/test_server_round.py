"""A whole server on a real socket, and devices that follow the protocol step by step."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import urllib3

from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server import Server, ServerThread
from tests.server.servers import result, submit


def update(number, name="update", dtype=np.float32, shape=(3,), format="federated_compute"):
    return write_checkpoint({name: np.full(shape, number, dtype)}, format)


def total(result):
    return list(open_checkpoint(result)["total"])


def test_a_round(make_server, make_device, sum_task):
    thread = make_server(populations=["people/of"])
    url = thread.server.url
    assert url == f"http://localhost:{thread.server.port}/"
    task_id = submit(thread, sum_task("people/of"))
    for number, format in ((1, "tf_v1"), (20, "federated_compute"), (300, "tf_v1")):
        device = make_device(url, "people/of")
        downloaded = device.contribute(update(number, format=format))
        assert downloaded == (b"the plan", b"the checkpoint")
    assert total(result(thread, task_id)) == [321.0] * 3


def test_devices_in_parallel(make_server, make_device, sum_task):
    thread = make_server()
    count = 16
    task_id = submit(thread, sum_task(goal=count))
    devices = [make_device(thread.server.url, "people") for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: devices[n].contribute(update(2**n)), range(count)))
    assert total(result(thread, task_id)) == [2.0**count - 1] * 3


def test_a_population_that_is_not(make_server, make_device):
    thread = make_server(populations=["people"])
    device = make_device(thread.server.url, "nobody")
    with pytest.raises(make_device.Refused) as refused:
        device.check_in()
    assert (refused.value.status, refused.value.code) == (404, Code.NOT_FOUND)
    assert "'nobody'" in refused.value.message


def wrong_token(device, url):
    work, *_ = device.assignment()
    try:
        device.start_upload(work, token="0" * 32)
    finally:
        device.report(work, Code.INTERNAL)


def client_token(device, url):
    work, *_ = device.assignment()
    upload = device.start_upload(work)
    try:
        device.start_upload(work, upload.client_token)
    finally:
        device.report(work, Code.INTERNAL)


def malformed_protobuf(device, url):
    path = "/v1/eligibilityevaltasks/people:request?%24alt=proto"
    device.send("POST", url, path, b"\xff\xff")


def wrong_encoding(device, url):
    path = "/v1/eligibilityevaltasks/people:request?%24alt=proto"
    device.send("POST", url, path, b"", {"Content-Encoding": "deflate"})


def bad_upload(data, headers):
    def step(device, url):
        work, *_ = device.assignment()
        upload = device.start_upload(work)
        path = f"/upload/v1/media/{upload.resource.resource_name}?upload_protocol=raw"
        try:
            device.send("POST", url, path, data, headers)
        finally:
            device.report(work, Code.INTERNAL)

    return step


def bad_checkpoint(data):
    def step(device, url):
        work, *_ = device.assignment()
        upload = device.start_upload(work)
        device.upload(upload, data)
        device.submit(work, upload)

    return step


def unknown_upload(device, url):
    device.send("POST", url, "/upload/v1/media/no/such", b"x")


def wrong_resource(device, url):
    work, *_ = device.assignment()
    upload = device.start_upload(work)
    device.upload(upload, update(1000))
    try:
        device.submit(work, upload, resource_name="another")
    finally:
        device.report(work, Code.INTERNAL)


def submit_of_nothing(device, url):
    work, *_ = device.assignment()
    upload = device.start_upload(work)
    try:
        device.submit(work, upload)
    finally:
        device.report(work, Code.INTERNAL)


GZIP = {"Content-Encoding": "gzip"}
#: Of a mistake of the device; ABORTED says that something is missing, and may be mended.
CODES = (Code.INVALID_ARGUMENT, Code.UNAUTHENTICATED, Code.ABORTED)
MISTAKES = {
    "wrong token": (wrong_token, 401, "token"),
    "token of another kind": (client_token, 401, "another kind"),
    "malformed protobuf": (malformed_protobuf, 400, "EligibilityEvalTaskRequest"),
    "wrong encoding": (wrong_encoding, 400, "'deflate'"),
    "wrong encoding of an upload": (bad_upload(b"", {"Content-Encoding": "br"}), 400, "'br'"),
    "truncated gzip": (bad_upload(gzip.compress(update(1000))[:-4], GZIP), 400, "truncated"),
    "corrupt gzip": (bad_upload(update(1000), GZIP), 400, "gzip"),
    "body over the limit": (bad_upload(bytes(100_001), {}), 413, "100001"),
    "bomb": (bad_upload(gzip.compress(bytes(300_001)), GZIP), 413, "200000"),
    "unknown upload": (unknown_upload, 401, "upload"),
    "wrong resource": (wrong_resource, 400, "'another'"),
    "submit of nothing": (submit_of_nothing, 409, "upload"),
    "no checkpoint": (bad_checkpoint(b"this is no checkpoint"), 400, "checkpoint"),
    "empty upload": (bad_checkpoint(b""), 400, "empty"),
    "truncated checkpoint": (bad_checkpoint(update(1000)[:-6]), 400, "trunc"),
    "wrong name": (bad_checkpoint(update(1000, name="other")), 400, "update"),
    "wrong dtype": (bad_checkpoint(update(1000, dtype=np.int64)), 400, "int64"),
    "wrong shape": (bad_checkpoint(update(1000, shape=(4,))), 400, "4"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server with one round that all the mistakes are made in."""
    plugins = Plugins.load(
        environ={},
        overrides={"max_body": 100_000, "max_decompressed": 200_000},
        working_folder=tmp_path_factory.mktemp("server"),
    )
    with ServerThread(Server(plugins, populations=["people"])) as thread:
        yield thread


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_does_not_disturb_the_round(shared, make_device, name, sum_task):
    mistake, status, said = MISTAKES[name]
    task_id = submit(shared, sum_task(goal=3))
    url = shared.server.url
    for number in (1, 20):
        make_device(url, "people").contribute(update(number))
        with pytest.raises(make_device.Refused) as refused:
            mistake(make_device(url, "people"), url)
        assert refused.value.status == status
        assert refused.value.code in CODES or status == 413
        assert said in refused.value.message
    make_device(url, "people").contribute(update(300))
    assert total(result(shared, task_id)) == [321.0] * 3


def test_an_upload_that_was_refused_can_be_repeated(make_server, make_device, sum_task):
    thread = make_server()
    task_id = submit(thread, sum_task(goal=1))
    device = make_device(thread.server.url, "people")
    work, *_ = device.assignment()
    upload = device.start_upload(work)
    for bad in (b"not gzip", gzip.compress(update(5))[:-3]):
        path = f"/upload/v1/media/{upload.resource.resource_name}?upload_protocol=raw"
        with pytest.raises(make_device.Refused):
            device.send("POST", thread.server.url, path, bad, GZIP)
    device.upload(upload, update(7), encoding="identity")
    device.submit(work, upload)
    assert total(result(thread, task_id)) == [7.0] * 3


def test_several_populations_and_tasks(make_server, make_device, sum_task):
    thread = make_server(populations=["a", "b"])
    first = submit(thread, sum_task("a", goal=1))
    second = submit(thread, sum_task("b", goal=1))
    make_device(thread.server.url, "b").contribute(update(2))
    make_device(thread.server.url, "a").contribute(update(1))
    assert total(result(thread, first)) == [1.0] * 3
    assert total(result(thread, second)) == [2.0] * 3


def test_a_plan_is_cached_by_its_tag(make_server, make_device, sum_task):
    thread = make_server()
    submit(thread, sum_task(goal=2))
    device = make_device(thread.server.url, "people")
    device.check_in()
    plan = device.start().plan
    first = device.pool.request("GET", plan.uri)
    assert (first.status, first.headers["Content-Type"]) == (200, "application/x-protobuf+gzip")
    again = device.pool.request("GET", plan.uri, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.data) == (304, b"")


def test_authentication_by_a_plugin(make_server, make_device, sum_task):
    from fcp_core.plugins import hookimpl

    class Keys:
        key = "another"

        @hookimpl
        def fcp_authenticate(self, path, headers):
            if headers["x-goog-api-key"] != self.key:
                raise StatusError(Code.UNAUTHENTICATED, "the key is not known here")
            return "someone"

    keys = Keys()
    thread = make_server(extra=[keys])
    task_id = submit(thread, sum_task(goal=1))
    device = make_device(thread.server.url, "people")
    with pytest.raises(make_device.Refused) as refused:
        device.check_in()
    assert (refused.value.status, refused.value.message) == (401, "the key is not known here")
    keys.key = "key"
    device.contribute(update(1))
    assert total(result(thread, task_id)) == [1.0] * 3


@pytest.mark.slow
def test_the_server_runs_without_tensorflow(make_device, tmp_path, sum_task):
    """A whole round; the server's process cannot import TensorFlow, and does not try."""
    script = """
import sys
blocked = ("tensorflow", "tensorflow_federated", "jax", "keras")
sys.modules.update(dict.fromkeys(blocked))
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread
plugins = Plugins.load(environ={})
with ServerThread(Server(plugins)) as thread:
    tasks = thread.server.services.tasks
    spec = TaskSpec("people", "sum", b"p", bytes.fromhex(sys.argv[1]), 2)
    task = thread.run(tasks.submit(spec)).result()
    print(thread.server.url, flush=True)
    print(thread.run(tasks.wait(task)).result().hex(), flush=True)
    sys.stdin.read()
assert all(sys.modules[name] is None for name in blocked)
print("ended", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, sum_task().aggregation.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        try:
            url = process.stdout.readline().strip()
            for number in (1, 20):
                make_device(url, "people").contribute(update(number))
            assert total(bytes.fromhex(process.stdout.readline())) == [21.0] * 3
            process.stdin.close()
            assert process.stdout.readline() == "ended\n"
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_importing_the_server_imports_no_tensorflow_and_is_light():
    script = (
        "import sys, fcp_core.server;"
        "heavy = {'tensorflow', 'jax', 'sklearn', 'pandas', 'scipy', 'sqlite3'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_stopping_while_devices_are_at_work(make_server, make_device, sum_task):
    thread = make_server({"drain_timeout": "1s"})
    submit(thread, sum_task(goal=100_000))
    halt = threading.Event()

    def work(number):
        """Contribute until something fails; return what did."""
        device = make_device(thread.server.url, "people")
        while not halt.is_set():
            try:
                device.contribute(update(number))
            except make_device.Rejected:
                return None  # it is told that the server stops
            except (make_device.Refused, urllib3.exceptions.HTTPError) as error:
                return error
        return None

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        while thread.run(thread.server.services.tasks.list()).result(30)[0].contributed < 4:
            pass
        thread.stop()
        halt.set()
    for error in [worker.result() for worker in workers]:
        if isinstance(error, make_device.Refused):
            assert error.code in (Code.UNAVAILABLE, Code.ABORTED)
