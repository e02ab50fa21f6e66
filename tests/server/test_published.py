"""What is kept for devices to fetch: in memory, in storage or in a file."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol.protos import plan_pb2
from fcp_core.protocol.status import StatusError
from fcp_core.rounds.tasks import TaskSpec
from fcp_core.server.services import spool
from fcp_core.server.services.downloads import Downloads
from fcp_core.server.services.published import publish, publish_plan
from tests.server.servers import LARGE, PLAN


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


def test_a_large_model_lies_in_a_file_and_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 300_000)
    monkeypatch.setattr(spool, "PIECE", 70_000)
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


def test_a_large_model_that_shrinks_is_compressed_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 300_000)
    monkeypatch.setattr(spool, "PIECE", 70_000)
    model = np.random.default_rng(0).integers(0, 1 << 20, 1_000_000, "i4").tobytes()
    spec = TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model)
    tracemalloc.start()
    try:
        published = publish("group", spec, folder=tmp_path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sent = file_of(published, "checkpoint", compressed=True).data
    assert most < len(sent) / 2
    assert gzip.decompress(bytes(sent)) == model
    assert bytes(sent)[4:8] == bytes(4), "the same at any time"


@pytest.mark.parametrize("inline_below", [0, 300_000])
def test_a_large_model_that_shrinks_is_undone_into_a_file(tmp_path, monkeypatch, inline_below):
    monkeypatch.setattr(spool, "SPOOLED", 300_000)
    monkeypatch.setattr(spool, "PIECE", 70_000)
    model = np.arange(100_000, dtype="i4").tobytes()
    spec = TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model)
    published = publish("group", spec, folder=tmp_path, inline_below=inline_below)
    sent = published.resource("checkpoint", "http://h/", compressed=False)
    assert sent.uri, "it is too large to lie in the answer"
    assert not published._plain, "the event loop would have undone it to know that"
    found = file_of(published, "checkpoint", compressed=False)
    assert isinstance(found.data, spool.Spooled)
    assert (len(found.data), bytes(found.data)) == (len(model), model)
    assert file_of(published, "checkpoint", compressed=False) is found
    # Where there is no folder for it.
    packed = file_of(published, "checkpoint", compressed=True)
    assert packed.plain(tmp_path / "missing").data == model


def test_a_large_model_is_undone_once_for_all_and_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 10_000)
    model = np.arange(100_000, dtype="i4").tobytes()
    spec = TaskSpec("p", "task", b"plan", b"", 1, checkpoint=model)
    at_once, most = 0, []

    async def apart(size, function, *arguments):
        nonlocal at_once
        at_once += 1
        most.append((at_once, size))
        await asyncio.sleep(0)  # The others ask meanwhile.
        at_once -= 1
        return function(*arguments)

    async def main():
        downloads = Downloads()
        downloads.add(publish("group", spec, folder=tmp_path))
        name = "group.plain/checkpoint"
        return await asyncio.gather(*(downloads.get(name) for _ in range(3)))

    monkeypatch.setattr("fcp_core.server.services.published._apart", apart)
    monkeypatch.setattr(spool.Spooled, "__bytes__", lambda self: pytest.fail("all is in memory"))
    found = asyncio.run(main())
    assert most == [(1, len(model))] * 3, "what it becomes is large"
    assert [each.data.read(0, len(model)) for each in found] == [model] * 3


def test_where_no_file_can_be_written_a_large_model_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SPOOLED", 10)
    assert spool.spooled(b"0123456789", tmp_path / "missing") == b"0123456789"
