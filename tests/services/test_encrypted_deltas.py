"""What an aggregator keeps of contributions is stored encrypted or not at all."""

import asyncio

import numpy as np
import pytest

from fcp_core.aggregation.configuration import configuration_to_proto
from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint, write_checkpoint
from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.common import Wanted
from fcp_core.server.services.sealed import Seals, read_seals
from fcp_core.storage.records import BlobRecord
from tests.services.worlds import stored


@pytest.fixture
def median():
    """Return what a task says whose aggregator keeps every contribution."""
    intrinsic = Intrinsic(
        "federated_mean",
        (TensorSpec("update/0", DataType.FLOAT, (2,)),),
        (TensorSpec("intermediate_update/0/0", DataType.FLOAT, (2,)),),
    )
    aggregation = configuration_to_proto([intrinsic]).SerializeToString()
    return {"aggregation": aggregation, "aggregators": {"federated_mean": "median"}}


def test_an_aggregator_that_keeps_contributions_says_that_they_are_not_stored(
    kit, sqlite, caplog, median
):
    spec = median

    async def main():
        async with sqlite() as world:
            task = await world.submit(goal=2, **spec)
            assert (await world.status(task)).durability == "round"
            assert "can only be 'round': median keeps every contribution" in caplog.text
            with pytest.raises(StatusError, match="median keeps every contribution") as caught:
                await world.submit(durability="contribution", **spec)
            assert caught.value.code is Code.INVALID_ARGUMENT

    asyncio.run(main())


def keys_file(folder, *keys):
    path = folder / "kept.keys"
    path.write_text("\n".join(keys))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_contribution_lies_in_a_file_only_if_its_sum_is_stored_as_it_is(
    kit, sqlite, tmp_path, median, monkeypatch, sealed
):
    """What devices contribute is in no file of the server's else, not even for a while."""
    keys = {"kept_keys_file": keys_file(tmp_path, "0a" * 32)} if sealed else {}

    async def wanted(world, expected, **spec):
        task = await world.submit(**spec)
        assert (await world.status(task)).durability == expected
        device = world.device()
        ticket = await device.start_upload(await device.assignment())
        found = await world.services.media.begin_upload(ticket.resource.resource_name)
        await world.services.tasks.cancel(task)
        return found

    async def main():
        async with sqlite(**keys) as world:
            assert await wanted(world, "contribution") is Wanted.FOR_STORAGE
            assert await wanted(world, "round", durability="round") is Wanted.FOR_MEMORY
            monkeypatch.setattr("fcp_core.server.services.task_runner.LARGE", 1)
            large = Wanted.FOR_STORAGE | Wanted.LARGE
            assert await wanted(world, "contribution") == large
            monkeypatch.undo()
            kept = "contribution" if sealed else "round"
            assert await wanted(world, kept, **median) is Wanted.FOR_MEMORY

    asyncio.run(main())


def test_what_an_aggregator_keeps_is_stored_encrypted(kit, sqlite, tmp_path, median):
    values = [np.array([n, -n], np.float32) + 0.1234 for n in range(20)]

    async def contribute(world, numbers):
        for number in numbers:
            device = world.device()
            held = await device.assignment()
            ticket = await device.start_upload(held)
            await device.upload(ticket, write_checkpoint({"update/0": values[number]}, "tf_v1"))
            await device.submit(held, ticket)

    async def readable(world):
        blobs = [b.data for b in await stored(world, BlobRecord) if "/shard/" in b.name]
        assert blobs
        return [n for n, value in enumerate(values) if any(value.tobytes() in b for b in blobs)]

    async def main():
        old = keys_file(tmp_path, "0a" * 32)
        async with sqlite(kept_keys_file=old) as world:
            task = await world.submit(goal=20, **median)
            assert (await world.status(task)).durability == "contribution"
            await contribute(world, range(7))
            assert await readable(world) == []
        # Another key is the first one by now, and the old one may still be needed.
        both = keys_file(tmp_path, "0b" * 32, "0a" * 32)
        async with sqlite(kept_keys_file=both) as world:
            assert (await world.status(task)).contributed == 7
            world.devices = 7
            await contribute(world, range(7, 19))
            assert await readable(world) == []
        for options in ({}, {"kept_keys_file": keys_file(tmp_path, "0c" * 32)}):
            with pytest.raises(UsageError, match="encrypted, and kept_keys_file has no key"):
                async with sqlite(**options):
                    raise AssertionError("it starts")
        both = keys_file(tmp_path, "0b" * 32, "0a" * 32)
        async with sqlite(kept_keys_file=both) as world:
            world.devices = 19
            await contribute(world, [19])
            result = open_checkpoint(await world.services.tasks.wait(task))
            (found,) = result.values()
            assert found == pytest.approx(np.median(values, axis=0))

    asyncio.run(main())


def test_encrypted_bytes_belong_to_their_name():
    one, other = Seals([b"a" * 32]), Seals([b"b" * 32, b"a" * 32])
    sealed = b"".join(one.seal("t/s", [b"some ", memoryview(b"bytes")]))
    assert b"bytes" not in sealed
    assert sealed != b"".join(one.seal("t/s", [b"some bytes"]))  # each has a nonce of its own
    assert other.unseal("t/s", sealed) == b"some bytes"
    for name, data in (("t/r", sealed), ("t/s", sealed[:-1]), ("t/s", sealed[:-1] + b"?")):
        with pytest.raises(StatusError, match="are damaged") as caught:
            other.unseal(name, data)
        assert caught.value.code is Code.DATA_LOSS
    with pytest.raises(StatusError, match="has no key for them"):
        Seals([b"b" * 32]).unseal("t/s", sealed)


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (None, 0, "cannot be read: No such file"),
        ("0a" * 31, 0o600, "64 hexadecimal digits"),
        ("", 0o600, "64 hexadecimal digits"),
        ("\xe4", 0o600, "it is not ASCII text"),
        ("0a" * 32, 0o644, "has mode 0644"),
    ],
)
def test_a_file_with_keys_that_cannot_be_used(tmp_path, text, mode, expected):
    path = tmp_path / "kept.keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(UsageError, match=expected):
        read_seals(path)
