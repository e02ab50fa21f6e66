"""Eligibility tasks over the admin API."""

from __future__ import annotations

import json
from urllib.parse import quote

import msgspec
import pytest

from fcp_core.admin import AdminClient
from fcp_core.admin.messages import EligibilitySettings
from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.eligibility import EligibilityTask, PolicyChoice


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
