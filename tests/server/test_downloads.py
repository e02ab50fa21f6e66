"""Where devices get plans, checkpoints and slices from, and in which form."""

from __future__ import annotations

import asyncio
import gzip

import pytest
import urllib3

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import common_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.server import Server
from fcp_core.server.services.published import publish_plan
from tests.server.fronts import WAIT
from tests.server.servers import LARGE, PLAN, submit


def test_nobody_fetches_an_index_that_cannot_be_or_fills_the_memory():
    published = publish_plan("group", b"", b"")

    def get(name):
        return asyncio.run(published.get(name, compressed=True))

    for name in (f"plan-{2**63}", "plan-", "plan-x", "plan-01", "plan--1", "checkpoint-1"):
        assert get(name) is None
    forms = {get(f"plan-{number}").data for number in range(50)}
    assert len(forms) == 50
    assert len(published._indexed) == 2


# What a server offers.


def assignment(device, formats=(common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP,)):
    """Check in with these compression formats and get a task."""
    device.check_in(formats)
    return device.start()


def get(uri):
    with urllib3.PoolManager(retries=False, timeout=WAIT) as client:
        reply = client.request("GET", uri, decode_content=False)
        assert reply.status == 200
        return reply.headers["Content-Type"], reply.data


SLICES = {"s_1": {0: b"zero", 7: b"seven" * 9000}, "other": {0: b"other"}}
KEPT = {
    "memory": {},
    "storage": {"resources_from": "storage"},
    "SQLite": {"resources_from": "storage", "storage": "sqlite"},
    "SQLite without a cache": {
        "resources_from": "storage",
        "storage": "sqlite",
    },
}


@pytest.mark.parametrize("kept", KEPT)
def test_each_device_gets_the_form_that_it_can_read(
    make_server, make_device, sum_task, monkeypatch, kept
):
    if kept == "SQLite without a cache":
        monkeypatch.setattr("fcp_core.server.services.downloads.CACHE", 0)
    thread = make_server(KEPT[kept])
    task_id = submit(thread, sum_task(goal=4, plan=PLAN, slices=SLICES))
    packed = assignment(make_device(thread.server.url, "people"))
    plain = assignment(make_device(thread.server.url, "people"), ())
    kinds = ("application/x-protobuf", "application/octet-stream")
    for task, suffix, read in ((packed, "+gzip", gzip.decompress), (plain, "", bytes)):
        found = [get(resource.uri) for resource in (task.plan, task.init_checkpoint)]
        assert [kind for kind, _ in found] == [kind + suffix for kind in kinds]
        assert [read(data) for _, data in found] == [PLAN, b"the checkpoint"]
        template = task.federated_select_uri_info.uri_template
        for served_at_id, slices in SLICES.items():
            for key, data in slices.items():
                uri = template.replace("{served_at_id}", served_at_id)
                kind, body = get(uri.replace("{key_base10}", str(key)))
                assert (kind, read(body)) == (kinds[1] + suffix, data)
        for missing in ("s_1_1", "nothing_0", "plan_", "_", "s_1"):
            folder = template.rpartition("/")[0]
            with urllib3.PoolManager(retries=False) as client:
                assert client.request("GET", f"{folder}/{missing}").status == 404
    thread.run(thread.server.services.tasks.cancel(task_id)).result(WAIT)
    with urllib3.PoolManager(retries=False) as client:
        for task in (packed, plain):
            assert client.request("GET", task.plan.uri).status == 410


@pytest.mark.parametrize("kept", KEPT)
def test_ranges_and_tags_wherever_it_comes_from(make_server, make_device, sum_task, kept):
    thread = make_server(KEPT[kept])
    submit(thread, sum_task(goal=4, plan=PLAN, slices=SLICES))
    task = assignment(make_device(thread.server.url, "people"))
    slices = task.federated_select_uri_info.uri_template.replace("{served_at_id}", "s_1")
    for uri in (task.plan.uri, task.init_checkpoint.uri, slices.replace("{key_base10}", "7")):
        _, whole = get(uri)
        with urllib3.PoolManager(retries=False, timeout=WAIT) as client:

            def ask(method="GET", uri=uri, **headers):
                return client.request(method, uri, headers=headers, decode_content=False)

            tag = ask("HEAD").headers["ETag"]
            if uri == task.plan.uri:
                assert tag == f'"{task.plan.client_cache_id}"'
            part = ask(Range="bytes=5-", **{"If-Range": tag})
            assert (part.status, part.data) == (206, whole[5:])
            assert ask(**{"If-None-Match": tag}).status == 304
            assert ask(Range="bytes=5-", **{"If-Range": '"other"'}).data == whole


def test_a_server_that_starts_again_reads_what_it_stored(make_server, make_device, sum_task):
    first = make_server(KEPT["SQLite"])
    submit(first, sum_task(plan=PLAN))
    first.stop()
    thread = make_server(KEPT["SQLite"])
    task = assignment(make_device(thread.server.url, "people"))
    assert gzip.decompress(get(task.plan.uri)[1]) == PLAN
    assert gzip.decompress(get(task.init_checkpoint.uri)[1]) == b"the checkpoint"
    (published,) = thread.server.services.tasks._downloads._groups.values()
    assert published.files == {}


def test_small_resources_lie_in_the_assignment(make_server, make_device, sum_task):
    thread = make_server({"inline_resources_below": "100"})
    submit(thread, sum_task(goal=2, checkpoint=LARGE))
    packed = assignment(make_device(thread.server.url, "people"))
    plain = assignment(make_device(thread.server.url, "people"), ())
    for task, format, read in ((packed, 1, gzip.decompress), (plain, 0, bytes)):
        assert task.plan.WhichOneof("resource") == "inline_resource"
        assert task.plan.inline_resource.compression_format == format
        assert read(task.plan.inline_resource.data) == b"the plan"
        assert not task.plan.client_cache_id
        assert read(get(task.init_checkpoint.uri)[1]) == LARGE


def test_one_task_may_be_inline_and_another_not(make_server, make_device, sum_task, tmp_path):
    (tmp_path / "fcp.cfg").write_text("[fcp:task:small]\ninline_resources_below = 1KiB\n")
    thread = make_server()
    for name in ("small", "sum"):
        submit(thread, sum_task(goal=1, name=name))
    kinds = {}
    for _ in range(2):
        task = assignment(make_device(thread.server.url, "people"))
        kinds[task.task_name] = task.plan.WhichOneof("resource")
    assert kinds == {"small": "inline_resource", "sum": "uri"}


@pytest.mark.parametrize(
    ("options", "largest", "own", "plan", "checkpoint"),
    [
        ({}, None, None, "uri", "uri"),
        ({}, None, "inline", "inline_resource", "inline_resource"),
        # As large as it may be, as it is sent to a device without gzip; and too large by a byte.
        ({}, 1000, "inline", "inline_resource", "inline_resource"),
        ({}, 999, "inline", "inline_resource", "uri"),
        ({"inline_resources_below": "1MiB"}, None, "uri", "uri", "uri"),
        # What an operator says of tasks that say nothing is not bounded by that limit.
        ({"inline_resources_below": "1MiB"}, 0, None, "inline_resource", "inline_resource"),
        ({"resources_from": "storage"}, None, "inline", "inline_resource", "inline_resource"),
        ({"resources_from": "storage"}, 999, "inline", "inline_resource", "uri"),
    ],
)
def test_a_task_says_where_its_resources_are(
    make_server, make_device, sum_task, monkeypatch, options, largest, own, plan, checkpoint
):
    if largest is not None:
        monkeypatch.setattr("fcp_core.plugins.settings.LARGEST_INLINE", largest)
    thread = make_server(options)
    submit(thread, sum_task(checkpoint=LARGE, resources=own))
    task = assignment(make_device(thread.server.url, "people"), ())
    for resource, form, data in (
        (task.plan, plan, b"the plan"),
        (task.init_checkpoint, checkpoint, LARGE),
    ):
        assert resource.WhichOneof("resource") == form
        assert (resource.inline_resource.data if form != "uri" else get(resource.uri)[1]) == data


def test_a_task_that_says_what_is_neither(make_server, sum_task):
    thread = make_server()
    with pytest.raises(StatusError, match="resources must be 'inline' or 'uri', not 'both'"):
        submit(thread, sum_task(resources="both"))


def test_a_cached_plan_is_named_by_its_content(make_server, make_device, sum_task):
    thread = make_server()
    for name, plan in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        submit(thread, sum_task(goal=1, name=name, plan=plan))
    tasks = {}
    for _ in range(3):
        task = assignment(make_device(thread.server.url, "people"))
        tasks[task.task_name] = task
        assert task.plan.max_age.seconds > 0
        # Every round has a checkpoint of its own: keeping it would only take room.
        assert not task.init_checkpoint.client_cache_id
        assert not task.init_checkpoint.HasField("max_age")
    ids = {name: task.plan.client_cache_id for name, task in tasks.items()}
    assert ids["a"] == ids["b"] != ids["c"]


def test_downloads_may_come_from_elsewhere(make_server, make_device, sum_task):
    thread = make_server({"download_prefix": "https://cdn.example/fcp"})
    submit(thread, sum_task(slices=SLICES))
    task = assignment(make_device(thread.server.url, "people"))
    url = thread.server.url
    for uri in (task.plan.uri, task.federated_select_uri_info.uri_template):
        assert uri.startswith("https://cdn.example/fcp/data/")
    assert task.aggregation_data_forwarding_info.target_uri_prefix == url
    # What the CDN asks its origin for is there.
    assert get(task.plan.uri.replace("https://cdn.example/fcp/", url))[0].endswith("+gzip")


@pytest.mark.parametrize("prefix", ["cdn.example", "https://cdn.example/?x", "ftp://x/"])
def test_a_prefix_that_is_none(tmp_path, prefix):
    overrides = {"download_prefix": prefix}
    plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
    with pytest.raises(UsageError, match="download_prefix"):
        Server(plugins)
