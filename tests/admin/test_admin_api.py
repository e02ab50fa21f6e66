"""The admin API over HTTP: every answer is held to the description of the API."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import sys
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec
import pytest
import urllib3
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.admin import AdminClient
from fcp_core.admin.api import ENDPOINTS, find
from fcp_core.admin.messages import EligibilitySettings, Submission
from fcp_core.admin.openapi import describe
from fcp_core.commands.main import cli
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec
from fcp_core.server import Server, ServerThread

WAIT = 30.0


def _load_schemas():
    spec = importlib.util.spec_from_file_location(
        "fcp_admin_schema", Path(__file__).with_name("schema.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


schema = _load_schemas()
DOCUMENT = json.loads(json.dumps(describe()))
SCHEMAS = schema.Schemas(DOCUMENT)


class Api:
    """Sends requests, and checks each answer against the description."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.pool = urllib3.PoolManager(retries=False, timeout=WAIT)
        self.token = token

    def __call__(self, verb, path, body=None, *, token=None, accept=None, **query):
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if accept is not None:
            headers["Accept"] = accept
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        suffix = f"?{urlencode(query)}" if query else ""
        reply = self.pool.request(
            verb, self.url + "/admin/v1" + path + suffix, body=body, headers=headers
        )
        self.check(verb, path, reply)
        return reply

    def check(self, verb, path, reply):
        kind = reply.headers["Content-Type"]
        found = find("/admin/v1" + path)
        if verb not in found:
            assert reply.status in (401, 404, 405, 431)
            assert kind == "application/json"
            error = DOCUMENT["components"]["schemas"]["Error"]
            assert SCHEMAS.problems(error, reply.json()) == []
            return
        endpoint, _ = found[verb]
        operation = DOCUMENT["paths"]["/admin/v1" + endpoint.path][verb.lower()]
        assert str(reply.status) in operation["responses"], (reply.status, reply.data)
        content = operation["responses"][str(reply.status)]["content"]
        assert kind in content, kind
        if kind == "application/json":
            assert SCHEMAS.problems(content[kind]["schema"], reply.json()) == []


@pytest.fixture
def thread(make_server):
    return make_server()


@pytest.fixture
def api(thread, make_server):
    api = Api(thread.server.url, make_server.token)
    yield api
    api.pool.clear()


def wire(spec, **changes):
    """Return a specification as the body of a submission."""
    return {**json.loads(msgspec.json.encode(Submission.of(spec))), **changes}


def test_the_life_of_a_task(api, thread, make_spec, contribute):
    task = api("POST", "/tasks", wire(make_spec(2))).json()
    path = f"/tasks/{task['task_id']}"
    assert api("GET", path).json() == task
    assert api("GET", f"{path}/result").status == 400
    assert api("GET", f"{path}:wait", timeout=0).json()["state"] == "open"
    assert api("DELETE", path).status == 400
    assert api("GET", "/populations").json()["populations"][0]["missing"] == 2

    contribute(thread.server.url, maps=2, mail=1)
    contribute(thread.server.url, maps=3)
    done = api("GET", f"{path}:wait", timeout=WAIT).json()
    assert (done["state"], done["contributed"]) == ("completed", 2)
    checkpoint = open_checkpoint(api("GET", f"{path}/result").data)
    assert checkpoint.get_tensor("launches").sum() == 6
    table = api("GET", f"{path}/result", accept="application/json").json()
    assert table["columns"][0] == {"name": "app", "dtype": "string", "values": ["maps", "mail"]}
    csv = api("GET", f"{path}/result", accept="text/*, application/json;q=0.5")
    assert csv.data == b"app,launches\nmaps,5\nmail,1\n"
    assert api("GET", f"{path}/result", accept="image/png").status == 406

    assert api("POST", f"{path}:cancel").json()["state"] == "completed"
    assert api("GET", "/status").json()["tasks"] == {"completed": 1}
    assert api("DELETE", path).json()["task_id"] == task["task_id"]
    assert api("GET", path).status == 404
    assert api("GET", "/openapi.json").json() == DOCUMENT


@pytest.mark.parametrize("old", [False, True])
def test_a_large_submission_is_sent_as_it_is(thread, make_server, make_spec, monkeypatch, old):
    if old:  # knows one form only
        monkeypatch.setattr("fcp_core.server.http.admin.api.MSGPACK", "nothing/known")
    kinds = []
    model = bytes(range(256)) * 8192
    with AdminClient(thread.server.url, make_server.token) as client:
        request = client._http.request
        monkeypatch.setattr(
            client._http,
            "request",
            lambda *given, **more: (
                kinds.append((more["headers"]["Content-Type"], len(more["body"] or b"")))
                or request(*given, **more)
            ),
        )
        task = client.submit(make_spec().replace(checkpoint=model))
        client.submit(make_spec())
    sent = ["application/msgpack", *(["application/json"] if old else []), "application/json"]
    assert [kind for kind, _ in kinds] == sent
    assert kinds[0][1] < len(model) + 10_000
    published = thread.run(_checkpoint(thread.server, task.task_id)).result(WAIT)
    assert published == model


async def _checkpoint(server, task_id):
    return await server.services.tasks._store.file(task_id, "checkpoint")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"\xc1", "malformed"), (b"\x81\xa1x\x01", "unknown field"), (b"\x81", "")],
)
def test_a_malformed_body_of_the_other_form_is_refused_in_words(api, body, words):
    reply = api.pool.request(
        "POST",
        api.url + "/admin/v1/tasks",
        body=body,
        headers={"Authorization": f"Bearer {api.token}", "Content-Type": "application/msgpack"},
    )
    assert reply.status == 400
    assert words in reply.json()["message"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_cannot_say_comes_in_no_other_form(api, make_spec, number):
    spec = make_spec().replace(options={"federated_sum": {"max_norm": number}})
    reply = api.pool.request(
        "POST",
        api.url + "/admin/v1/tasks",
        body=msgspec.msgpack.encode(Submission.of(spec)),
        headers={"Authorization": f"Bearer {api.token}", "Content-Type": "application/msgpack"},
    )
    assert reply.status == 400
    assert "options.federated_sum.max_norm" in reply.json()["message"]
    assert api("GET", "/tasks").json()["tasks"] == []


def test_a_cancelled_task_says_why(api, make_spec):
    path = "/tasks/" + api("POST", "/tasks", wire(make_spec())).json()["task_id"]
    error = api("POST", f"{path}:cancel", {"reason": "no need"}).json()["error"]
    assert error == {"code": 1, "status": "CANCELLED", "message": "no need"}
    result = api("GET", f"{path}/result")
    assert result.status == 400
    assert result.json()["message"].endswith("CANCELLED: no need")


def test_lists_can_be_narrowed(api, make_spec):
    for _ in range(2):
        first = api("POST", "/tasks", wire(make_spec())).json()["task_id"]
    api("POST", f"/tasks/{first}:cancel")
    assert len(api("GET", "/tasks").json()["tasks"]) == 2
    (task,) = api("GET", "/tasks", state="cancelled", population="phones/all").json()["tasks"]
    assert task["task_id"] == first
    assert api("GET", "/tasks", population="others").json() == {"tasks": []}


def test_a_key_finds_a_task_again(api, make_spec):
    body = wire(make_spec(), key="mine")
    task = api("POST", "/tasks", body).json()
    assert api("POST", "/tasks", body).json()["task_id"] == task["task_id"]
    other = api("POST", "/tasks", {**body, "name": "others"})
    assert (other.status, other.json()["status"]) == (409, "ALREADY_EXISTS")
    api("POST", f"/tasks/{task['task_id']}:cancel")
    assert api("POST", "/tasks", body).json()["state"] == "cancelled"
    api("DELETE", f"/tasks/{task['task_id']}")
    assert api("POST", "/tasks", body).json()["state"] == "open"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"goal_count": 0}, "$.goal_count"),
        ({"goal_count": "2"}, "$.goal_count"),
        ({"goal_cuont": 2}, "goal_cuont"),
        ({"minimum_count": 3}, "minimum_count"),
        ({"population": "a//b"}, "$.population"),
        ({"plan": "no base64!"}, "$.plan"),
        ({"aggregation": base64.b64encode(b"junk").decode()}, "aggregation configuration"),
        ({"selection": "lottery"}, "lottery"),
        ({"deadline": -1}, "$.deadline"),
        ({"resources": "both"}, "$.resources"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_a_wrong_submission_is_told_what_is_wrong(api, make_spec, changes, named):
    reply = api("POST", "/tasks", wire(make_spec(), **changes))
    assert reply.status == 400
    assert named in reply.json()["message"]
    assert api("GET", "/tasks").json() == {"tasks": []}


def test_only_the_token_opens(api, make_server):
    for token in ("", "wrong", make_server.token + "x", "ä".encode().decode("latin-1")):
        reply = api("GET", "/tasks", token=token)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    # Nobody learns without it what there is.
    assert api("GET", "/nothing", token="wrong").status == 401
    assert api("GET", "/nothing").status == 404
    reply = api("PATCH", "/tasks")
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, POST")


def test_without_a_token_there_is_no_api(make_server):
    thread = make_server(token=None)
    with urllib3.PoolManager(retries=False, timeout=WAIT) as pool:
        assert pool.request("GET", thread.server.url + "admin/v1/tasks").status == 404
    with (
        AdminClient(thread.server.url, "a", patience=0) as client,
        pytest.raises(StatusError, match="is the admin API on"),
    ):
        client.list()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"token": "short"}, "at least 16"),
        ({"token": "with a space in the middle"}, "without a space"),
        ({"admin__token_file": "none"}, "two admin tokens"),
        ({"token": None, "admin__token_file": "none"}, "token file"),
    ],
    ids=["short", "space", "two", "missing"],
)
def test_a_bad_token_stops_the_start(make_server, options, problem):
    with pytest.raises(UsageError, match=problem):
        make_server(**options)


def test_a_body_over_the_limit_is_refused(make_server):
    thread = make_server(max_body="1KiB", max_decompressed="1KiB")
    api = Api(thread.server.url, make_server.token)
    reply = api("POST", "/tasks", b" " * 5000)
    assert (reply.status, reply.json()["status"]) == (413, "FAILED_PRECONDITION")
    api.pool.clear()


def test_submissions_are_specifications(make_spec):
    ours = set(TaskSpec.__struct_fields__)
    assert set(Submission.__struct_fields__) == ours | {"key"}
    spec = TaskSpec(
        population="p",
        name="n",
        plan=b"\x00",
        aggregation=b"\x01",
        goal_count=3,
        checkpoint=b"c",
        minimum_count=2,
        assignment_mode=AssignmentMode.MULTIPLE,
        deadline=1.5,
        over_selection=2.0,
        max_at_work=7,
        resources="inline",
        late_contributions="refuse",
        durability="round",
        slices={"s": {1: b"x"}},
        result_format="federated_compute",
        protocol="simple",
        selection="fifo",
        eligibility=["data_availability"],
        aggregators={"a": "b"},
        options={"fifo": {"x": 1}},
        query='{"sql": "SELECT 1"}',
        costs=[{"type": "zcdp", "rho": 0.5}],
    )
    assert all(getattr(spec, f.name) != f.default for f in msgspec.structs.fields(TaskSpec))
    data = msgspec.json.encode(Submission.of(spec))
    assert msgspec.json.decode(data, type=Submission).to_spec() == spec


def eligibility_plan():
    message = plan_pb2.ClientOnlyPlan()
    message.phase.federated_compute_eligibility.task_eligibility_info_tensor_name = "info:0"
    return message.SerializeToString()


FULL = EligibilityTask(
    eligibility_plan(),
    b"input",
    name="mine",
    arguments=b"\x00\xff",
    task_names=["train"],
    policies=[
        PolicyChoice("sampling_without_replacement", {"min_period": "2h"}, ["train"]),
        PolicyChoice("minimum_separation"),
    ],
    covers=["minimum_separation"],
)


def test_eligibility_settings_are_eligibility_tasks():
    assert set(EligibilitySettings.__struct_fields__) == set(EligibilityTask.__struct_fields__)
    assert all(getattr(FULL, f.name) != f.default for f in msgspec.structs.fields(EligibilityTask))
    data = msgspec.json.encode(EligibilitySettings.of(FULL))
    assert msgspec.json.decode(data, type=EligibilitySettings).to_task() == FULL


def test_the_life_of_an_eligibility_task(api, thread, make_server):
    path = "/eligibility_tasks/phones%2Fall"
    assert api("GET", "/eligibility_tasks").json() == {"eligibility_tasks": []}
    assert api("GET", path).status == api("DELETE", path).status == 404
    body = json.loads(msgspec.json.encode(EligibilitySettings.of(FULL)))
    summary = api("PUT", path, body).json()
    assert (summary["population"], summary["checkpoint_size"]) == ("phones/all", 5)
    assert [policy["policy"] for policy in summary["policies"]] == [
        "sampling_without_replacement",
        "minimum_separation",
    ]
    assert api("GET", path).json() == body
    assert api("GET", "/eligibility_tasks").json() == {"eligibility_tasks": [summary]}
    assert api("GET", "/populations").json()["populations"][0]["name"] == "phones/all"
    assert api("PUT", path, body, token="wrong").status == 401
    assert api("PATCH", path).headers["Allow"] == "DELETE, GET, PUT"

    with AdminClient(thread.server.url, make_server.token, patience=0) as client:
        assert client.eligibility_task("phones/all") == FULL
        policies = EligibilityTask(policies=[PolicyChoice("minimum_separation")])
        assert client.set_eligibility_task("phones/all", policies).plan_size == 0
        assert client.eligibility_task("phones/all") == policies
        (found,) = client.eligibility_tasks().eligibility_tasks
        assert found.population == "phones/all"
        for _ in range(2):
            client.remove_eligibility_task("phones/all")
        with pytest.raises(StatusError, match="has no eligibility task"):
            client.eligibility_task("phones/all")
    assert api("DELETE", path).status == 404


@pytest.mark.parametrize(
    ("population", "body", "named"),
    [
        ("p", {}, "a plan or policies"),
        ("p", {"plan": "AAAA", "checkpoint": "AAAA"}, "not a ClientOnlyPlan"),
        ("p", {"policies": [{"policy": "samplng"}]}, "no active plugin offers"),
        ("p", {"policies": [{"policy": "data_availability", "option": 1}]}, "unknown field"),
        ("p", {"policies": [{"policy": "data_availability", "task_names": ["a b"]}]}, "task_names"),
        ("a b", {"policies": [{"policy": "minimum_separation"}]}, "population"),
    ],
)
def test_a_wrong_eligibility_task_is_told_what_is_wrong(api, population, body, named):
    reply = api("PUT", f"/eligibility_tasks/{quote(population, safe='')}", body)
    assert reply.status == 400
    assert named in reply.json()["message"]
    assert api("GET", "/eligibility_tasks").json() == {"eligibility_tasks": []}


def test_the_description_describes_what_there_is():
    operations = {
        (path.removeprefix("/admin/v1"), verb.upper())
        for path, verbs in DOCUMENT["paths"].items()
        for verb in verbs
    }
    assert operations == {(endpoint.path, endpoint.verb) for endpoint in ENDPOINTS}
    for schema_ in DOCUMENT["components"]["schemas"].values():
        SCHEMAS.resolve(schema_)


@st.composite
def requests(draw):
    """Any request that the description allows, and some that it does not."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    operation = DOCUMENT["paths"]["/admin/v1" + endpoint.path][endpoint.verb.lower()]
    path = endpoint.path
    if "{task_id}" in path:
        task_id = draw(st.sampled_from(["KNOWN", "DONE"]) | st.text(min_size=1, max_size=8))
        path = path.replace("{task_id}", quote(task_id, safe=""))
    if "{population}" in path:
        population = draw(st.sampled_from(["p", "p/q"]) | st.text(min_size=1, max_size=8))
        path = path.replace("{population}", quote(population, safe=""))
    query = {
        parameter["name"]: draw(SCHEMAS.values(parameter["schema"]) | st.text(max_size=4))
        for parameter in operation["parameters"]
        if parameter["in"] == "query" and draw(st.booleans())
    }
    if endpoint.method == "wait":
        query["timeout"] = draw(st.sampled_from([0, -1, "x", 0.001, "nan", "inf", "1e999"]))
    body = None
    if "requestBody" in operation:
        given = operation["requestBody"]["content"]["application/json"]["schema"]
        values = SCHEMAS.values(given) | schema.JSON_VALUES
        body = draw(values.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=20))
    accept = draw(st.none() | st.sampled_from([*endpoint.answers, "*/*", "x;q=y", "text/*;q=0"]))
    return endpoint.verb, path, body, accept, query


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_no_request_breaks_the_server(fuzzed, request):
    api, known, done = fuzzed
    verb, path, body, accept, query = request
    if "KNOWN" in path and (verb == "DELETE" or path.endswith(":cancel")):
        return
    path = path.replace("KNOWN", known).replace("DONE", done)
    reply = api(verb, path, body, accept=accept, **query)
    assert reply.status < 500
    assert api("GET", f"/tasks/{known}").json()["state"] == "open"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    """A server with a task that is open and one that is cancelled; for all examples together."""
    from fcp_core.tasks.analytics import Analytics, Query, Vector

    token = "another-token-that-is-long"
    plugins = Plugins.load(
        environ={},
        overrides={"admin.token": token},
        working_folder=tmp_path_factory.mktemp("fuzz"),
    )
    spec = Analytics(
        population="p",
        name="n",
        goal_count=1,
        queries=(Query("c", {"x": Vector("int64")}),),
        sums={"x": "x"},
    ).to_spec()
    with ServerThread(Server(plugins)) as thread:
        api = Api(thread.server.url, token)
        known, done = (api("POST", "/tasks", wire(spec)).json()["task_id"] for _ in range(2))
        api("POST", f"/tasks/{done}:cancel")
        yield api, known, done
        api.pool.clear()


def test_the_client_refuses_to_send_the_token_in_the_clear():
    with pytest.raises(UsageError, match="HTTPS"):
        AdminClient("http://fcp.example.org/", "token")
    with pytest.raises(UsageError, match="must be like"):
        AdminClient("fcp.example.org", "token")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"deadline": math.inf}, "deadline"),
        ({"options": {"federated_sum": {"max_norm": math.nan}}}, "options.federated_sum.max_norm"),
        ({"options": {"x": {"y": [1.0, -math.inf]}}}, "options.x.y.1"),
    ],
)
def test_the_client_sends_no_number_that_json_lacks(fields, name):
    spec = TaskSpec(population="p", name="n", plan=b"", aggregation=b"", goal_count=1, **fields)
    with (
        AdminClient("http://localhost:1/", None, patience=0) as client,
        pytest.raises(StatusError, match=f"^{name}: .* is not a finite number"),
    ):
        client.submit(spec)


def test_the_client_says_when_nobody_is_there(make_server):
    thread = make_server()
    thread.stop()
    with (
        AdminClient(thread.server.url, make_server.token, patience=0) as client,
        pytest.raises(StatusError, match="cannot be reached") as caught,
    ):
        client.list()
    assert caught.value.code is Code.UNAVAILABLE


def test_a_certificate_opens_as_the_token_does(certificates, tmp_path):
    authority = certificates / "authority.pem"
    plugins = Plugins.load(
        environ={},
        overrides={
            "client_ca": str(authority),
            "client_certificates": "optional",
            "admin.certificate_names": "operator",
        },
        working_folder=tmp_path,
    )
    with ServerThread(Server(plugins, certfile=certificates / "server.pem")) as thread:

        def client(token, certfile):
            path = None if certfile is None else certificates / certfile
            return AdminClient(
                thread.server.url, token, ca_file=authority, certfile=path, patience=0
            )

        with client(None, "operator.pem") as operator:
            assert operator.list() == []
        files = ["--ca-file", authority, "--client-certfile", certificates / "operator.pem"]
        arguments = ["tasks", "--server", thread.server.url, *files, "list"]
        listed = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert (listed.exit_code, "contributed" in listed.output) == (0, True), listed.output
        for token, certfile in ((None, "device.pem"), ("some-token-or-other", None)):
            with client(token, certfile) as other, pytest.raises(StatusError) as caught:
                other.list()
            assert caught.value.code is Code.UNAUTHENTICATED


def test_names_of_certificates_need_an_authority(make_server):
    with pytest.raises(UsageError, match="client_ca"):
        make_server(admin__certificate_names="operator")


def test_a_certificate_that_cannot_be_shown_is_told_at_once(tmp_path):
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(UsageError, match=r"text\.pem cannot be used"):
        AdminClient("https://localhost:1/", None, certfile=tmp_path / "text.pem")


def test_https_to_a_server_of_plain_http_says_so(make_server):
    url = make_server().server.url.replace("http://", "https://")
    with (
        AdminClient(url, "a-token-of-enough-characters") as client,
        pytest.raises(StatusError, match="plain http"),
    ):
        client.list()
