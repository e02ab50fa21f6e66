"""What devices download: ranges, forms for every device, inline resources, slices, a CDN."""

from __future__ import annotations

import asyncio
import gzip

import numpy as np
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.protos import common_pb2, plan_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server import Server, ServerThread
from fcp_core.server.http import downloads
from fcp_core.server.http.downloads import parse_range
from fcp_core.server.services import spool
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.published import publish, publish_plan

WAIT = 30.0
DATA = bytes(range(256)) * 4
FILE = "/data/group/plan"


# Plans with an index.


@given(st.binary(max_size=300), st.integers(0, 2**63 - 1))
def test_a_plan_with_an_index_is_the_plan_and_the_index(text, index):
    plan = plan_pb2.ClientOnlyPlan(graph=text, client_persisted_data={"min_sep_policy_index": 3})
    published = publish_plan("group", plan.SerializeToString(), b"", inline_below=1 << 20)
    for compressed in (True, False):
        plain = published.plan("", compressed=compressed).inline_resource
        indexed = published.plan("", compressed=compressed, separation_index=index).inline_resource
        unpack = gzip.decompress if compressed else bytes
        assert plan_pb2.ClientOnlyPlan.FromString(unpack(plain.data)) == plan
        wanted = plan_pb2.ClientOnlyPlan()
        wanted.CopyFrom(plan)
        wanted.client_persisted_data.min_sep_policy_index = index
        assert plan_pb2.ClientOnlyPlan.FromString(unpack(indexed.data)) == wanted


def test_nobody_fetches_an_index_that_cannot_be_or_fills_the_memory():
    published = publish_plan("group", b"", b"")

    def get(name):
        return asyncio.run(published.get(name, compressed=True))

    for name in (f"plan-{2**63}", "plan-", "plan-x", "plan-01", "plan--1", "checkpoint-1"):
        assert get(name) is None
    forms = {get(f"plan-{number}").data for number in range(50)}
    assert len(forms) == 50
    assert len(published._indexed) == 2


# Ranges.


@pytest.fixture
def front(make_front, http):
    services = http.Services()
    services.media.files["group/plan"] = http.Download(DATA, "application/x+gzip", "tag", 60.0)
    return make_front(services)


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=1000-", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=-5000", 0, 1023),
        ("bytes=1000-99999999", 1000, 1023),
        ("Bytes = 7-8", 7, 8),
    ],
)
def test_a_range(front, http, header, first, last):
    with front.connect() as connection:
        reply = connection.send(http.head(FILE, "GET", Range=header)).reply("GET")
        assert (reply.status, reply.body) == (206, DATA[first : last + 1])
        assert reply.headers["Content-Range"] == f"bytes {first}-{last}/1024"
        assert reply.headers["ETag"] == '"tag"'
        assert reply.headers["Content-Type"] == "application/x+gzip"
        # The connection is good for more.
        assert connection.send(http.head(FILE, "GET")).reply("GET").body == DATA


@pytest.mark.parametrize("header", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_that_is_not_there(front, http, header):
    reply = front.ask(http.head(FILE, "GET", Range=header), method="GET")
    assert reply.status == 416
    assert reply.headers["Content-Range"] == "bytes */1024"
    assert "1024 bytes" in reply.error[1]


@pytest.mark.parametrize(
    "header", ["bytes=9-5", "bytes=-", "bytes=1-2,5-6", "lines=1-2", "bytes=x-", "1-2", "bytes"]
)
def test_a_range_that_is_none_is_ignored(front, http, header):
    reply = front.ask(http.head(FILE, "GET", Range=header), method="GET")
    assert (reply.status, reply.body) == (200, DATA)
    assert reply.headers["Accept-Ranges"] == "bytes"


def test_a_range_of_what_the_client_has(front, http):
    def ask(method="GET", **headers):
        return front.ask(http.head(FILE, method, Range="bytes=4-", **headers), method=method)

    assert ask(If_Range='"tag"').status == 206
    for other in ('"old"', 'W/"tag"', "Sun, 22 Nov 2026 00:00:00 GMT"):
        assert ask(If_Range=other).body == DATA
    assert ask(If_None_Match='"tag"').status == 304
    reply = ask("HEAD")
    assert (reply.status, reply.headers["Content-Length"]) == (200, "1024")


@given(st.text("bytes=-,0123456789 "), st.integers(0, 30))
def test_any_range_header_is_within_the_data(header, size):
    wanted = parse_range(header, size)
    if wanted:
        assert 0 <= wanted.start < wanted.stop <= size


# What a server offers.


@pytest.fixture
def make_server(tmp_path):
    running = []

    def make(**overrides):
        overrides["storage.sqlite.path"] = str(tmp_path / "fcp.sqlite")
        plugins = Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path)
        thread = ServerThread(Server(plugins))
        running.append(thread)
        thread.start()
        return thread

    yield make
    for thread in running:
        thread.stop()


def submit(thread, spec):
    return thread.run(thread.server.services.tasks.submit(spec)).result(WAIT)


def assignment(device, formats=(common_pb2.RESOURCE_COMPRESSION_FORMAT_GZIP,)):
    """Check in with these compression formats and get a task."""
    device.check_in(formats)
    return device.start()


def get(uri):
    with urllib3.PoolManager(retries=False, timeout=WAIT) as client:
        reply = client.request("GET", uri, decode_content=False)
        assert reply.status == 200
        return reply.headers["Content-Type"], reply.data


PLAN = b"the plan" * 5000
LARGE = b"".join(bytes([n % 251, n // 251]) for n in range(500))
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
    thread = make_server(**KEPT[kept])
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
    thread = make_server(**KEPT[kept])
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
    first = make_server(**KEPT["SQLite"])
    submit(first, sum_task(plan=PLAN))
    first.stop()
    thread = make_server(**KEPT["SQLite"])
    task = assignment(make_device(thread.server.url, "people"))
    assert gzip.decompress(get(task.plan.uri)[1]) == PLAN
    assert gzip.decompress(get(task.init_checkpoint.uri)[1]) == b"the checkpoint"
    (published,) = thread.server.services.tasks._downloads._groups.values()
    assert published.files == {}


def test_small_resources_lie_in_the_assignment(make_server, make_device, sum_task):
    thread = make_server(inline_resources_below="100")
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
    thread = make_server(**options)
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


# What comes from the storage.


@given(
    st.binary(max_size=300),
    st.binary(max_size=300),
    st.dictionaries(
        st.sampled_from(["s", "s_1"]),
        st.dictionaries(st.integers(0, 9), st.binary(max_size=50), max_size=2),
        max_size=2,
    ),
    st.integers(0, 330),
)
def test_it_makes_no_difference_where_it_comes_from(plan, checkpoint, slices, inline_below):
    spec = TaskSpec("p", "t", plan, b"", 1, checkpoint, slices=slices)
    stored = {"plan": plan, "checkpoint": checkpoint}
    stored |= {f"{name}_{key}": d for name, by_key in slices.items() for key, d in by_key.items()}
    asked = []

    async def source(name):
        asked.append(name)
        return stored.get(name)

    here = publish("group", spec, inline_below=inline_below)
    there = publish("group", spec, inline_below=inline_below, source=source)

    async def check():
        for compressed in (True, False):
            for name in (*stored, "plan-7", "plan-07", "checkpoint-7", "s_77", "other"):
                expected = await here.get(name, compressed=compressed)
                assert await there.get(name, compressed=compressed) == expected
                wanted = here.resource(name, "", compressed=compressed)
                assert there.resource(name, "", compressed=compressed) == wanted
            wanted = here.select_info("", compressed=compressed)
            assert there.select_info("", compressed=compressed) == wanted

    asyncio.run(check())
    assert inline_below or "plan" in asked
    assert not {*there.files} & {*asked}


class Source:
    """A storage of files that waits until it may answer."""

    def __init__(self, **files):
        self.files = files
        self.asked = []
        self.go = asyncio.Event()

    async def __call__(self, name):
        self.asked.append(name)
        await self.go.wait()
        return self.files.get(name)


def published_from(source, group="group"):
    spec = TaskSpec("p", "t", source.files.get("plan", b""), b"", 1, slices={"s": {0: b""}})
    return publish(group, spec, source=source)


def test_those_who_want_the_same_at_once_have_it_read_once():
    async def main():
        source = Source(plan=PLAN)
        downloads = Downloads(1 << 20)
        downloads.add(published_from(source))
        first, *others = [asyncio.create_task(downloads.get("group/plan")) for _ in range(5)]
        plain = asyncio.create_task(downloads.get("group.plain/plan"))
        while len(source.asked) < 2:
            await asyncio.sleep(0)
        # The one that reads goes away: another one reads.
        first.cancel()
        source.go.set()
        (packed,) = {download.data for download in await asyncio.gather(*others)}
        assert gzip.decompress(packed) == (await plain).data == PLAN
        assert source.asked == ["plan"] * 3
        await downloads.get("group/plan")
        assert len(source.asked) == 3
        assert not downloads._reading

    asyncio.run(main())


def test_the_cache_is_bounded_and_emptied():
    async def main():
        source = Source(**{f"s_{key}": bytes([key]) * 10 for key in range(20)}, s_99=LARGE * 20)
        source.go.set()
        downloads = Downloads(10_000)
        for group in ("a", "b"):
            downloads.add(published_from(source, group))
        for key in range(20):
            for group in ("a", "b.plain", "a"):
                assert (await downloads.get(f"{group}/s_{key}")).data
        assert len(source.asked) == 40
        assert 8000 < downloads._size <= 10_000
        assert downloads._size == sum(len(d.data) + 1024 for d in downloads._cache.values())
        # What was asked for lately is there; what is too large never is.
        await downloads.get("a/s_19")
        assert len(source.asked) == 40
        for _ in range(2):
            await downloads.get("a.plain/s_99")
        assert len(source.asked) == 42
        downloads.remove("a")
        assert {name.partition("/")[0] for name in downloads._cache} == {"b.plain"}
        downloads.remove("b")
        assert (downloads._size, downloads._cache) == (0, {})

    asyncio.run(main())


def test_nothing_is_kept_of_a_task_that_ends_meanwhile():
    async def main():
        source = Source(plan=PLAN)
        downloads = Downloads(1 << 20)
        downloads.add(published_from(source))
        reading = asyncio.create_task(downloads.get("group/plan"))
        while not source.asked:
            await asyncio.sleep(0)
        downloads.remove("group")
        source.go.set()
        await reading
        assert downloads._size == 0
        with pytest.raises(StatusError, match="there is nothing here"):
            await downloads.get("group/plan")

    asyncio.run(main())


def test_what_is_known_is_not_read_to_compare_it():
    source = Source(plan=PLAN)
    downloads = Downloads()
    published = published_from(source)
    downloads.add(published)
    for name in ("plan", "plan-3"):
        etag = published.plan("", separation_index=3 if "-" in name else None).client_cache_id
        for folder in ("group", "group.plain"):
            assert downloads.is_same(f"{folder}/{name}", etag)
            assert not downloads.is_same(f"{folder}/{name}", "other")
    assert not downloads.is_same("group/s_0", "any")
    downloads.remove("group")
    assert not downloads.is_same("group/plan", etag)
    assert source.asked == []


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
    thread = make_server(download_prefix="https://cdn.example/fcp")
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


# What is compressed.


def file_of(published, name, *, compressed):
    return asyncio.run(published.get(name, compressed=compressed))


def test_a_model_that_does_not_shrink_is_sent_as_it_is():
    model = np.random.default_rng(0).standard_normal(100_000).astype("f4").tobytes()
    spec = TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model, slices={"s": {0: model}})
    published = publish("group", spec)
    for name in ("checkpoint", "s_0"):
        for compressed in (True, False):
            sent = file_of(published, name, compressed=compressed)
            # The bytes themselves: no second copy of a large model.
            assert sent.data is model
            assert sent.content_type == "application/octet-stream"
    inline = publish_plan("group", b"plan", model, inline_below=1 << 20)
    for compressed in (True, False):
        resource = inline.resource("checkpoint", "", compressed=compressed).inline_resource
        assert resource.data == model
        assert not resource.HasField("compression_format")


def test_a_model_that_shrinks_is_sent_compressed():
    model = np.arange(100_000, dtype="i4").tobytes()
    published = publish("group", TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model))
    sent = file_of(published, "checkpoint", compressed=True)
    assert sent.content_type == "application/octet-stream+gzip"
    assert gzip.decompress(sent.data) == model
    assert file_of(published, "checkpoint", compressed=False).data == model


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096, 50_001])
def test_what_is_written_in_parts_is_whole(make_front, http, monkeypatch, size):
    monkeypatch.setattr(downloads, "PART", 4096)
    data = np.random.default_rng(1).bytes(size)
    services = http.Services()
    services.media.files["group/plan"] = http.Download(data, "application/x", "tag", 60.0)
    front = make_front(services)
    with front.connect() as connection:
        for _ in range(2):
            assert connection.send(http.head(FILE, "GET")).reply("GET").body == data
        if size > 9:
            ask = http.head(FILE, "GET", Range="bytes=9-")
            assert connection.send(ask).reply("GET").body == data[9:]


def test_a_large_model_lies_in_a_file_and_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 300_000)
    monkeypatch.setattr(spool, "_PIECE", 70_000)
    model = np.random.default_rng(0).standard_normal(100_000).astype("f4").tobytes()
    small = model[:100_000]
    spec = TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model, slices={"s": {0: small}})
    published = publish("group", spec, folder=tmp_path)
    sent = file_of(published, "checkpoint", compressed=True)
    assert isinstance(sent.data, spool.Spooled)
    assert (len(sent.data), bytes(sent.data)) == (len(model), model)
    assert sent.data.read(5, 300_005) == model[5:300_005]
    assert isinstance(file_of(published, "s_0", compressed=True).data, bytes)
    # The file has no name, so that nothing is left of it after a kill.
    assert not list(tmp_path.iterdir())
    assert publish("group", spec).facts == published.facts


def test_where_no_file_can_be_written_a_large_model_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 10)
    assert spool.spooled(b"0123456789", tmp_path / "missing") == b"0123456789"


class Watched(spool.Spooled):
    """Remembers how much was read at a time."""

    def read(self, start, stop):
        self.sizes.add(stop - start)
        return super().read(start, stop)


@pytest.mark.parametrize("header", [{}, {"Range": "bytes=100-299999"}, {"Range": "bytes=-5"}])
def test_what_lies_in_a_file_is_sent_like_anything_else(make_front, http, tmp_path, header):
    data = np.random.default_rng(1).bytes(3 * downloads.PART // 2)
    services = http.Services()
    kept, sizes = Watched(data, tmp_path), set()
    kept.sizes = sizes
    services.media.files["group/plan"] = http.Download(kept, "application/x", "tag", 60.0)
    wanted = parse_range(header["Range"], len(data)) if header else range(len(data))
    with make_front(services).connect() as connection:
        for _ in range(2):
            reply = connection.send(http.head(FILE, "GET", **header)).reply("GET")
            assert reply.status == (206 if header else 200)
            assert reply.body == data[wanted.start : wanted.stop]
    # Each device that is slow has as much of it in memory.
    assert max(sizes) <= downloads.READ <= 1 << 17
