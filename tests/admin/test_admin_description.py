"""The description of the admin API describes what there is, and no request breaks the server."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.admin.api import ENDPOINTS
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server, ServerThread
from tests.admin.api_calls import DOCUMENT, SCHEMAS, Api, schema, wire


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


@pytest.mark.slow
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
