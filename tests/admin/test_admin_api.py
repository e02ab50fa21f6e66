"""The admin API over HTTP: every answer is held to the description of the API."""

from __future__ import annotations

import base64

import msgspec
import pytest
import urllib3

from fcp_core.admin import AdminClient
from fcp_core.admin.messages import Submission
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.tasks import AssignmentMode, TaskSpec
from tests.admin.api_calls import DOCUMENT, WAIT, Api, wire


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
    monkeypatch.setattr("fcp_core.server.http.admin.LARGE", 1 << 20)
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


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("body", "words"),
    [(b"\xc1", "malformed"), (b"\x81\xa1x\x01", "unknown field"), (b"\x81", "")],
)
def test_a_malformed_body_of_the_other_form_is_refused_in_words(
    api, monkeypatch, body, words, large
):
    if large:
        monkeypatch.setattr("fcp_core.server.http.admin.LARGE", 0)
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
    assert api("GET", "/tasks", population="others").json() == {"tasks": [], "total": 0}
    (older,) = api("GET", "/tasks", ended="false").json()["tasks"]
    assert older["state"] == "open"
    assert api("GET", "/tasks", ended="true").json() == {"tasks": [task], "total": 1}
    assert api("GET", "/tasks", newest="1").json() == {"tasks": [task], "total": 2}
    assert api("GET", "/tasks", newest="1", state="open").json() == {"tasks": [older], "total": 1}
    assert api("GET", "/tasks", newest="0").status == 400


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
    assert api("GET", "/tasks").json()["tasks"] == []


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
        ({"admin__token_file": "other"}, "two admin tokens"),
        ({"token": None, "admin__token_file": "none"}, "none cannot be read: No such file"),
    ],
    ids=["short", "space", "two", "missing"],
)
def test_a_bad_token_stops_the_start(make_server, options, problem, tmp_path):
    (tmp_path / "other").write_text("another-token-of-enough-characters")
    with pytest.raises(UsageError, match=problem):
        make_server(**options)


def test_a_wrong_token_is_called_one_and_the_same_token_twice_is_one(make_server, tmp_path):
    (tmp_path / "file").write_text(f"{make_server.token}\n")
    thread = make_server(admin__token_file="file")
    with AdminClient(thread.server.url, make_server.token, patience=0) as client:
        assert client.list() == []
    with (
        AdminClient(thread.server.url, "another-token", patience=0) as client,
        pytest.raises(StatusError, match="not the admin token of this server"),
    ):
        client.list()


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
