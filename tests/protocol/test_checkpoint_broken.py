"""The checkpoint codecs on broken, odd and hostile files."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.protocol.checkpoint import open_checkpoint, write_federated_compute, write_tf_v1
from fcp_core.protocol.checkpoint.table import TableWriter
from fcp_core.protocol.protos import tensorflow_saved_tensor_slice_pb2 as slice_pb2
from fcp_core.protocol.status import StatusError
from tests.protocol.checkpoint_files import HUGE, contents, listed, refused, stored


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"x", "not a checkpoint"),
        (b"FCv", "not a checkpoint"),
        (b"\x1f\x8b" + bytes(100), "not a checkpoint"),
        (bytes(100), "not a checkpoint"),
        (bytes(2) + bytes.fromhex("57fb808b247547db"), "not a checkpoint"),
        (bytes(60) + bytes.fromhex("57fb808b247547db"), "checksum"),
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes, message: str) -> None:
    assert message in refused(data)


SMALL = {
    "update/0": np.array([[1.5, -2], [3, 4]], np.float32),
    "n": np.array(-7, np.int64),
    "s": np.array([b"ab", b""], object),
    "flag": np.array([True]),
}
SMALL_V1 = write_tf_v1(SMALL)
SMALL_FC = write_federated_compute({k: v for k, v in SMALL.items() if k != "flag"})


def test_every_truncation_of_tf_v1_is_refused() -> None:
    for size in range(len(SMALL_V1)):
        assert contents(SMALL_V1[:size]) is None
        assert contents(SMALL_V1[:size], verify=False) is None
        assert contents(SMALL_V1[size + 1 :]) is None


def test_every_truncation_of_federated_compute_is_refused() -> None:
    assert contents(SMALL_FC) is not None
    for size in range(len(SMALL_FC)):
        assert contents(SMALL_FC[:size]) is None


@pytest.mark.parametrize("data", [SMALL_V1, SMALL_FC])
@pytest.mark.parametrize("more", [b"\0", b"\0\0\0\0", b"anything", SMALL_V1, SMALL_FC])
def test_bytes_after_a_checkpoint_are_refused(data: bytes, more: bytes) -> None:
    assert contents(data + more) is None
    assert contents(data + more, verify=False) is None


@pytest.mark.slow
def test_every_flipped_bit_of_tf_v1_is_refused_or_harmless() -> None:
    full = contents(SMALL_V1)
    harmless = 0
    for at in range(len(SMALL_V1)):
        for bit in range(8):
            broken = bytearray(SMALL_V1)
            broken[at] ^= 1 << bit
            found = contents(bytes(broken))
            assert found is None or found == full
            harmless += found is not None
            contents(bytes(broken), verify=False)
    # Nothing but the padding of the footer is without a checksum.
    assert harmless <= 8 * 40


def test_flipped_bits_of_federated_compute_never_crash() -> None:
    for at in range(len(SMALL_FC)):
        for bit in range(8):
            broken = bytearray(SMALL_FC)
            broken[at] ^= 1 << bit
            contents(bytes(broken))


@pytest.mark.slow
@given(st.sampled_from([SMALL_V1, SMALL_FC]), st.randoms(use_true_random=False))
@settings(max_examples=500)
def test_mangled_files_never_crash(data: bytes, source: random.Random) -> None:
    broken = bytearray(data)
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(broken))
        if source.random() < 0.3:
            broken[at : at + source.randint(0, 8)] = source.randbytes(source.randint(0, 8))
        else:
            broken[at] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
        broken = broken or bytearray(1)
    contents(bytes(broken), verify=False)
    contents(bytes(broken))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_never_crash(tail: bytes) -> None:
    contents(tail)
    contents(b"FCv1" + tail)
    contents(tail + SMALL_V1[-48:], verify=False)
    contents(tail + SMALL_V1[-8:], verify=False)


def table(*values: slice_pb2.SavedTensorSlices) -> bytes:
    """Return a V1 file with these values."""
    writer = TableWriter()
    for position, value in enumerate(values):
        writer.add(b"" if position == 0 else b"%04d" % position, [value.SerializeToString()])
    return writer.finish()


def test_bfloat16_is_read_as_float32() -> None:
    wanted = np.array([1.5, -2.0, np.inf, 2.0**-126], np.float32)
    patterns = (wanted.view(np.uint32) >> 16).tolist()
    checkpoint = open_checkpoint(table(listed(14, 4), stored(1, half_val=patterns)))
    assert checkpoint["a"].dtype == np.float32
    np.testing.assert_array_equal(checkpoint["a"], wanted)


def test_values_that_are_not_packed_are_read() -> None:
    """A parser must take both forms; TensorFlow writes the packed one."""
    head = slice_pb2.SavedSlice(name="a")
    head.slice.extent.add()
    for number, dtype, tag, values in (
        (1, "<f4", 5 << 3 | 5, [struct.pack("<f", v) for v in (1.5, 2.5)]),
        (2, "<f8", 6 << 3 | 1, [struct.pack("<d", v) for v in (1.5, 2.5)]),
        (3, "<i4", 7 << 3 | 0, [b"\x01", b"\xac\x02"]),
    ):
        tensor = b"".join(bytes([tag]) + value for value in values)
        inner = head.SerializeToString() + b"\x1a" + bytes([len(tensor)]) + tensor
        writer = TableWriter()
        writer.add(b"", [listed(number, 2).SerializeToString()])
        writer.add(b"a", [b"\x12" + bytes([len(inner)]) + inner])
        wanted = [1, 300] if number == 3 else [1.5, 2.5]
        got = open_checkpoint(writer.finish())["a"]
        assert got.dtype == dtype
        assert got.tolist() == wanted


@pytest.mark.parametrize(
    ("number", "field", "size"), [(1, 5, 4), (2, 6, 8), (8, 9, 8), (18, 12, 16)]
)
def test_packed_values_that_are_no_whole_number_are_refused(
    number: int, field: int, size: int
) -> None:
    head = slice_pb2.SavedSlice(name="a")
    head.slice.extent.add()
    packed = bytes(2 * size + 1)
    tensor = bytes([field << 3 | 2, len(packed)]) + packed
    inner = head.SerializeToString() + b"\x1a" + bytes([len(tensor)]) + tensor
    writer = TableWriter()
    writer.add(b"", [listed(number, 2).SerializeToString()])
    writer.add(b"a", [b"\x12" + bytes([len(inner)]) + inner])
    assert f"{len(packed)} bytes of values" in refused(writer.finish())


@pytest.mark.parametrize("number", [0, 11, 20, 21, 22, 23, 101, 99])
def test_a_foreign_dtype_spoils_only_itself(number: int) -> None:
    meta = listed(number, 2, name="odd")
    meta.meta.tensor.extend(listed(1, 2).meta.tensor)
    checkpoint = open_checkpoint(table(meta, stored(1, float_val=[1, 2]), stored(1, "odd")))
    assert checkpoint.names() == ("odd", "a")
    assert checkpoint["a"].tolist() == [1, 2]
    for access in (checkpoint.spec, checkpoint.get_tensor):
        with pytest.raises(StatusError, match="dtype number"):
            access("odd")


def whole_part(rank: int, start: int, length: int) -> slice_pb2.SavedTensorSlices:
    value = stored(rank, float_val=[1, 2])
    value.data.slice.extent[0].start = start
    value.data.slice.extent[0].length = length
    return value


BROKEN_V1 = [
    ("no values", table(listed(1, 2))),
    ("slices", table(listed(1, 4), whole_part(1, 0, 2), whole_part(1, 2, 2))),
    ("slices", table(listed(1, 4), whole_part(1, 2, 2))),
    ("slices", table(listed(1, 2), stored(1, float_val=[1, 2]), stored(1, float_val=[1, 2]))),
    ("slice of 1", table(listed(1, 1, 2), stored(1, float_val=[1, 2]))),
    ("3 values, but 2", table(listed(1, 3), stored(1, float_val=[1, 2]))),
    ("1 values, but 2", table(listed(1), stored(0, float_val=[1, 2]))),
    ("2 values, but 0", table(listed(1, 2), stored(1, double_val=[1, 2]))),
    ("2 values, but 3", table(listed(7, 2), stored(1, string_val=[b"", b"a", b"b"]))),
    ("2 values, but 1", table(listed(9, 2), stored(1, int64_val=[300]))),
    ("negative", table(listed(1, -1), stored(1))),
    ("too large", table(listed(1, HUGE, HUGE), stored(2))),
    ("too large", table(listed(1, 0, HUGE, HUGE), stored(3))),
    (f"{HUGE // 4} values, but 1", table(listed(1, HUGE // 4), stored(1, float_val=[1]))),
    ("40 dimensions", table(listed(1, *[1] * 40), stored(40, float_val=[1]))),
    ("first entry", table(stored(1, float_val=[1, 2]))),
    ("first entry", table()),
]


@pytest.mark.parametrize(("message", "data"), BROKEN_V1)
def test_inconsistent_tf_v1_files_are_refused(message: str, data: bytes) -> None:
    assert message in refused(data)


def test_a_name_listed_twice_is_refused() -> None:
    meta = listed(1, 2)
    meta.meta.tensor.extend(listed(1, 2).meta.tensor)
    assert "twice" in refused(table(meta, stored(1, float_val=[1, 2])))


def test_a_newer_file_is_refused() -> None:
    meta = listed(1, 2)
    meta.meta.versions.min_consumer = 2
    assert "version 2" in refused(table(meta))


def test_an_unknown_rank_is_refused() -> None:
    meta = listed(1)
    meta.meta.tensor[0].shape.unknown_rank = True
    assert "rank is unknown" in refused(table(meta, stored(0, float_val=[1])))


def test_values_of_unlisted_tensors_are_ignored() -> None:
    checkpoint = open_checkpoint(
        table(listed(1, 1), stored(1, "b", float_val=[2]), stored(1, float_val=[1]))
    )
    assert {name: value.tolist() for name, value in checkpoint.items()} == {"a": [1]}


def test_compressed_blocks_are_refused() -> None:
    data = bytearray(SMALL_V1)
    data[2 + 1 + data[2] + 8] = 1
    assert "Snappy" in refused(bytes(data), verify=False)
    data[2 + 1 + data[2] + 8] = 9
    assert "block type 9" in refused(bytes(data), verify=False)
    assert "checksum" in refused(bytes(data))


def test_checksums_are_checked_only_on_demand() -> None:
    at = SMALL_V1.index(np.float32(1.5).tobytes())
    data = SMALL_V1[:at] + np.float32(2.5).tobytes() + SMALL_V1[at + 4 :]
    assert "checksum of its data block" in refused(data)
    assert open_checkpoint(data, verify=False)["update/0"][0, 0] == 2.5
