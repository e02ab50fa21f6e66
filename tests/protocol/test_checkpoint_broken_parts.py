"""Checkpoints of parts and of the federated compute format that are broken or odd."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from fcp_core.protocol.checkpoint import open_checkpoint, wire, write_tf_v1
from fcp_core.protocol.checkpoint.table import TableWriter
from fcp_core.protocol.protos import aggregation_tensor_pb2
from fcp_core.protocol.status import Code, StatusError
from tests.protocol.checkpoint_files import HUGE, contents, listed, message, refused, stored


def appended(*parts: bytes) -> bytes:
    data = b""
    for part in parts:
        data += part + struct.pack("<q", len(data))
    return data


def test_appended_parts_are_one_checkpoint() -> None:
    one = write_tf_v1({"a": np.ones(2), "b": np.array([b"x"], object)})
    two = write_tf_v1({"c": np.int32(3)})
    for data in (appended(one, two), appended(one, two, write_tf_v1({}))):
        checkpoint = open_checkpoint(data)
        assert checkpoint.names() == ("a", "b", "c")
        assert checkpoint["a"].tolist() == [1, 1]
        assert checkpoint["b"].tolist() == [b"x"]
        assert checkpoint["c"] == 3
    assert open_checkpoint(appended(two)).names() == ("c",)


def test_broken_appended_parts_are_refused() -> None:
    one = write_tf_v1({"a": np.ones(2)})
    two = write_tf_v1({"b": np.ones(2)})
    assert "twice" in refused(appended(one, one))
    good = appended(one, two)
    for start in (-1, 1, len(good), len(good) - 60, 2**62):
        assert "corrupt" in refused(good[:-8] + struct.pack("<q", start))
    assert "corrupt" in refused(bytes(4) + two + struct.pack("<q", 4))
    for size in range(len(good)):
        # Cut where the first part ends, what is left is a checkpoint of its own.
        for verify in (True, False):
            found = contents(good[:size], verify=verify)
            assert (found is not None) == (size in (len(one), len(one) + 8))


def fc(*tensors: bytes, name: bytes = b"a", end: bytes = bytes(4)) -> bytes:
    parts = [bytes([len(name)]) + name + bytes([len(t)]) + t for t in tensors]
    return b"FCv1" + b"".join(parts) + end


def shape(*dims: int) -> Any:
    return aggregation_tensor_pb2.TensorShapeProto(dim_sizes=dims)


F4 = np.float32([1, 2]).tobytes()


@pytest.mark.parametrize("end", [b"", b"\0", b"\0\0\0", bytes(5), b"\0anything at all"])
def test_federated_compute_ends_in_the_four_zeros_that_every_builder_writes(end: bytes) -> None:
    tensor = message(dtype=1, shape=shape(2), content=F4)
    assert open_checkpoint(fc(tensor))["a"].tolist() == [1, 2]
    assert "terminator" in refused(fc(tensor, end=end))


def test_the_first_of_a_repeated_name_wins() -> None:
    first = message(dtype=1, shape=shape(2), content=F4)
    data = fc(first, message(dtype=1, content=F4[4:]))
    assert open_checkpoint(data)["a"].tolist() == [1, 2]


def test_the_typed_fields_and_names_of_newer_tensors_are_ignored() -> None:
    tensor = message(dtype=1, shape=shape(2), content=F4, float_val=[7, 8], name="b")
    assert open_checkpoint(fc(tensor))["a"].tolist() == [1, 2]


def test_surplus_bytes_of_strings_are_ignored() -> None:
    tensor = message(dtype=7, shape=shape(2), content=b"\x01\x00xsurplus")
    assert open_checkpoint(fc(tensor))["a"].tolist() == [b"x", b""]


def test_a_shape_in_pieces_and_unpacked_is_read() -> None:
    tensor = b"\x08\x01\x12\x02\x08\x02\x12\x03\x0a\x01\x01\x22\x08" + F4
    assert open_checkpoint(fc(tensor))["a"].tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "tensor"),
    [
        ("no dtype", message(shape=shape(2), content=F4)),
        ("no dtype", b""),
        ("dtype number 10", message(dtype=10, shape=shape(2), content=b"\0\1")),
        ("12 bytes", message(dtype=1, shape=shape(3), content=F4)),
        ("4 bytes", message(dtype=1, content=F4)),
        ("0 bytes", message(dtype=1, shape=shape(0), content=F4)),
        ("negative", message(dtype=1, shape=shape(-1), content=F4)),
        ("too large", message(dtype=2, shape=shape(HUGE, HUGE, 0))),
        ("bytes of content", message(dtype=1, shape=shape(HUGE // 4), content=F4)),
        ("40 dimensions", message(dtype=1, shape=shape(*[1] * 40), content=F4[:4])),
        ("at least", message(dtype=7, shape=shape(3), content=b"\0\0")),
        ("beyond its content", message(dtype=7, shape=shape(1), content=b"\x02x")),
        ("beyond its content", message(dtype=7, content=b"\xff" * 9 + b"\x01")),
        ("fewer lengths", message(dtype=7, content=b"\x80")),
        ("ten bytes", message(dtype=7, shape=shape(2), content=b"\xff" * 11 + b"\0\0")),
        ("wire type 2", b"\x0a\x01\x01"),
        ("shape of tensor 'a'", b"\x08\x01\x12\x05\x0d\x00\x00\x00\x00"),
        ("wire type 3", b"\x0b"),
        ("field number 0", b"\x00\x00"),
    ],
)
def test_broken_tensors_are_refused(text: str, tensor: bytes) -> None:
    assert text in refused(fc(tensor))


def test_overlong_numbers_are_refused() -> None:
    assert "ten bytes" in refused(b"FCv1" + b"\xff" * 12)
    assert "no end" in refused(b"FCv1" + b"\xff" * 5)
    for filler, text in ((20, "ten bytes"), (200_000, "ten bytes")):
        value = stored(1)
        value.data.data.int64_val.extend([0] * filler)
        data = value.SerializeToString().replace(b"\0" * filler, b"\x80" * (filler - 1) + b"\0")
        writer = TableWriter()
        writer.add(b"", [listed(9, 1).SerializeToString()])
        writer.add(b"a", [data])
        assert text in refused(writer.finish())


@pytest.mark.parametrize("end", [b"\x80", b"\xff", b"\x80\x80", b"\x01\x80", bytes(5000) + b"\x80"])
def test_packed_numbers_that_do_not_end_are_refused(end: bytes) -> None:
    """Whatever the last byte is: also the least that has another after it."""
    data = memoryview(end)
    with pytest.raises(StatusError, match="has no end") as caught:
        wire.decode_varints(data, wire.count_varints(data), np.dtype(np.int64))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_what_is_decoded_of_packed_numbers_need_not_be_in_memory(monkeypatch) -> None:
    monkeypatch.setattr(wire, "_BEHIND", 100_000)
    behind: list[int] = []
    monkeypatch.setattr(wire, "rest", lambda view: behind.append(len(view)))
    numbers = np.arange(-50_000, 50_000)
    data = memoryview(wire.encode_varints(numbers))
    count = wire.count_varints(data)
    assert (wire.decode_varints(data, count, numbers.dtype) == numbers).all()
    assert min(behind) >= 100_000
    assert len(data) - sum(behind) < 100_000


def test_an_index_cannot_make_a_reader_work_twice() -> None:
    """Or a small upload could keep a server busy with one large block named a million times."""
    writer = TableWriter()
    writer.add(b"", [listed(1, 2).SerializeToString()])
    writer._index *= 2
    assert "overlapping" in refused(writer.finish())
