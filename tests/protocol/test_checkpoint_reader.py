"""The reader accepts what opening accepts, byte for byte, whatever it remembers."""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.protocol.checkpoint import (
    Checkpoint,
    CheckpointReader,
    open_checkpoint,
    wire,
    write_checkpoint,
)
from fcp_core.protocol.checkpoint.kernels import Kernels, NumpyKernels, compiled_kernels, open_alike
from fcp_core.protocol.checkpoint.table import TableWriter
from fcp_core.protocol.protos import tensorflow_saved_tensor_slice_pb2 as slice_pb2
from fcp_core.protocol.status import StatusError

LOOPS = [NumpyKernels(), *filter(None, [compiled_kernels()])]


@pytest.fixture(params=LOOPS, ids=lambda kernels: kernels.name)
def kernels(request: Any) -> Kernels:
    return request.param  # type: ignore[no-any-return]


def small(shift: float, count: int = 3, text: bytes = b"ab") -> dict[str, Any]:
    """Return tensors whose numbers differ and whose structure does not."""
    return {
        "v": np.array([[1.5, -2], [3, 4]], np.float32) + np.float32(shift),
        "n": np.array(count, np.int64),
        "s": np.array([text, b""], object),
        "e": np.zeros((2, 0), np.float64),
    }


def appended(*tables: bytes) -> bytes:
    data = b""
    for table in tables:
        data += table + struct.pack("<q", len(data))
    return data


def files(name: str) -> tuple[bytes, bytes, bytes]:
    """Return three checkpoints of one structure."""
    if name == "appended":
        one, two, three = (
            appended(
                write_checkpoint({"v": np.array([shift], "f4")}, "tf_v1"),
                write_checkpoint({"w": np.array([shift, 1], "f8")}, "tf_v1"),
            )
            for shift in range(3)
        )
    else:
        one, two, three = (
            write_checkpoint(small(shift, shift + 1, b"%cb" % (97 + shift)), name)  # type: ignore[arg-type]
            for shift in range(3)
        )
    return one, two, three


NAMES = ["tf_v1", "federated_compute", "appended"]


def outcome(open_: Any, data: bytes) -> Any:
    """Return all that can be seen of a checkpoint, or of its refusal."""
    try:
        checkpoint: Checkpoint = open_(data)
    except StatusError as error:
        return error.code, error.message
    seen: dict[str, Any] = {"format": checkpoint.format, "names": checkpoint.names()}
    for name in checkpoint:
        try:
            tensor = checkpoint[name]
            seen[name] = (
                tensor.dtype,
                tensor.shape,
                tensor.tolist() if tensor.dtype == object else tensor.tobytes(),
                checkpoint.spec(name),
            )
        except StatusError as error:
            seen[name] = error.code, error.message
    return seen


def trained(data: bytes, kernels: Kernels, verify: bool = True) -> CheckpointReader:
    """Return a reader that knows the layout of *data*."""
    reader = CheckpointReader(verify=verify, kernels=kernels)
    assert reader.open(data).layout is None
    assert reader.open(data).layout is not None
    return reader


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_one_structure_share_a_layout(name: str, kernels: Kernels) -> None:
    one, two, three = files(name)
    reader = trained(one, kernels)
    layouts = {id(reader.open(data).layout) for data in (two, three, one)}
    assert len(layouts) == 1
    for data in (two, three, one, bytearray(two), memoryview(three)):
        assert outcome(reader.open, data) == outcome(open_checkpoint, data)


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_changed_byte_is_judged_as_without_a_layout(
    name: str, verify: bool, kernels: Kernels
) -> None:
    one, two, _ = files(name)
    reader = trained(one, kernels, verify)
    (layout,) = reader._layouts.values()
    accepted = 0
    for at in range(len(two)):
        for flip in (0x01, 0x80, 0xFF):
            broken = bytearray(two)
            broken[at] ^= flip
            found = open_alike(memoryview(broken), layout, verify=verify)
            expected = outcome(lambda data: open_checkpoint(data, verify=verify), bytes(broken))
            if found is not None:
                accepted += 1
                assert outcome(lambda _, found=found: found, b"") == expected
            assert outcome(reader.open, bytes(broken)) == expected
            # What the reader has learned from a broken file must not spoil the others.
            assert outcome(reader.open, two) == outcome(open_checkpoint, two)
    # A checksum leaves nothing that may change.
    assert bool(accepted) is (not verify or name == "federated_compute")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_size_is_judged_as_without_a_layout(name: str, kernels: Kernels) -> None:
    one, two, _ = files(name)
    reader = trained(one, kernels)
    for size in range(len(two)):
        for data in (two[:size], two + two[:size], two[size:]):
            assert outcome(reader.open, data) == outcome(open_checkpoint, data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_many_changes_at_once_are_judged_as_without_a_layout(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    verify = data.draw(st.booleans())
    one, two, three = files(name)
    reader = trained(one, data.draw(st.sampled_from(LOOPS)), verify)
    for _ in range(data.draw(st.integers(1, 6))):
        broken = bytearray(data.draw(st.sampled_from([one, two, three])))
        for _ in range(data.draw(st.integers(0, 5))):
            at = data.draw(st.integers(0, len(broken) - 1))
            kind = data.draw(st.sampled_from(["set", "insert", "delete", "copy"]))
            if kind == "set":
                broken[at] = data.draw(st.integers(0, 255))
            elif kind == "insert":
                broken.insert(at, data.draw(st.integers(0, 255)))
            elif kind == "delete":
                del broken[at]
            else:
                length = data.draw(st.integers(1, 12))
                broken[at : at + length] = three[at : at + length]
        expected = outcome(lambda item: open_checkpoint(item, verify=verify), bytes(broken))
        assert outcome(reader.open, bytes(broken)) == expected


def test_blocks_that_overlap_are_not_remembered(kernels: Kernels) -> None:
    """A value could be a part of the structure, and change it, where a block lies in another."""
    meta = slice_pb2.SavedTensorSliceMeta()
    meta.versions.producer = 1
    meta.tensor.add(name="a", type=1).shape.dim.add(size=2)
    meta.tensor[0].slice.add().extent.add()
    value = slice_pb2.SavedTensorSlices()
    value.data.name = "a"
    value.data.slice.extent.add()
    value.data.data.float_val[:] = [1, 2]
    writer = TableWriter()
    writer.add(b"", [slice_pb2.SavedTensorSlices(meta=meta).SerializeToString()])
    writer.add(b"a", [value.SerializeToString()])
    data = bytearray(writer.finish())
    reader = trained(bytes(data), kernels)
    # The metaindex, which nobody reads, is now said to be where the block of the values is.
    footer = len(data) - 48
    at = footer
    for _ in range(2):
        _, at = wire.read_varint(memoryview(data), at, len(data))
    start, end = reader.open(bytes(data)).blocks[-1]
    handle = wire.varint(start) + wire.varint(end - 1 - start)
    data[footer : footer + 40] = (handle + data[at : footer + 40]).ljust(40, b"\0")[:40]
    for _ in range(4):
        checkpoint = reader.open(bytes(data))
        assert checkpoint.layout is None
        assert checkpoint["a"].tolist() == [1, 2]


def test_a_layout_is_learned_from_a_size_that_comes_again(kernels: Kernels) -> None:
    """Files that differ in size each time are not worth remembering, and push nothing out."""
    one, two, _ = files("tf_v1")
    reader = trained(one, kernels)
    layout = reader.open(two).layout
    for size in range(100):
        data = write_checkpoint({"t": np.array([b"x" * size], object)}, "federated_compute")
        assert reader.open(data).layout is None
    assert reader.open(two).layout is layout
    assert len(reader._sizes) <= 16


def test_a_structure_that_changes_is_learned_anew(kernels: Kernels) -> None:
    old = [write_checkpoint({"a": np.array([x], "f4")}, "federated_compute") for x in (1, 2)]
    new = [write_checkpoint({"b": np.array([x], "f4")}, "federated_compute") for x in (1, 2)]
    reader = trained(old[0], kernels)
    assert reader.open(old[1]).layout is not None
    assert list(reader.open(new[0])) == ["b"]
    assert reader.open(new[1]).layout is reader.open(new[0]).layout is not None
    assert outcome(reader.open, old[0]) == outcome(open_checkpoint, old[0])


def test_a_structure_of_many_bytes_is_not_kept(kernels: Kernels, monkeypatch: Any) -> None:
    monkeypatch.setattr("fcp_core.protocol.checkpoint.layout._MOST_BYTES", 20)
    one, _, _ = files("federated_compute")
    reader = CheckpointReader(kernels=kernels)
    assert [reader.open(one).layout for _ in range(3)] == [None, None, None]


def test_threads_share_a_reader(kernels: Kernels) -> None:
    blobs = [data for name in ("tf_v1", "federated_compute") for data in files(name)]
    expected = [outcome(open_checkpoint, data) for data in blobs]
    reader = CheckpointReader(kernels=kernels)
    wrong = []

    def work() -> None:
        for _ in range(50):
            wrong.extend(
                data
                for data, seen in zip(blobs, expected, strict=True)
                if outcome(reader.open, data) != seen
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
