"""The checkpoint codecs by themselves: round trips and the laws of the mapping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fcp_core.protocol.checkpoint import (
    Checkpoint,
    federated_compute,
    open_checkpoint,
    tf_v1,
    write_checkpoint,
    write_federated_compute,
    write_tf_v1,
)
from fcp_core.protocol.protos import tensorflow_saved_tensor_slice_pb2 as slice_pb2
from fcp_core.protocol.status import Code, StatusError

FORMATS: list[Any] = ["tf_v1", "federated_compute"]

TF_DTYPES = [
    *(
        "<f2",
        "<f4",
        "<f8",
        "<c8",
        "<c16",
        "?",
        "i1",
        "<i2",
        "<i4",
        "<i8",
        "u1",
        "<u2",
        ">i4",
        ">f2",
    ),
    *(">f8", ">c8"),
]
FC_DTYPES = ["<f4", "<f8", "<i4", "<i8", "<u8", ">i8", ">f4"]


def numbers(dtypes: list[str]) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    return st.sampled_from(dtypes).flatmap(lambda dtype: hnp.arrays(dtype, shapes))


strings = hnp.arrays(
    object,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.binary(max_size=300),
    fill=st.nothing(),
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype.newbyteorder("<")
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got, wanted)


def check_round_trip(data: bytes, tensors: dict[str, Any]) -> None:
    for source in (data, bytearray(data), memoryview(b"x" + data)[1:]):
        checkpoint = open_checkpoint(source)
        assert checkpoint.names() == tuple(tensors) == tuple(checkpoint)
        for name, wanted in tensors.items():
            got = checkpoint[name]
            assert checkpoint.spec(name) == (got.dtype, got.shape)
            assert not got.flags.writeable
            same(got, wanted)


@given(st.dictionaries(names, numbers(TF_DTYPES) | strings, max_size=6))
def test_tf_v1_round_trip(tensors: dict[str, Any]) -> None:
    check_round_trip(write_tf_v1(tensors), tensors)


@given(st.dictionaries(names, numbers(FC_DTYPES) | strings, max_size=6))
def test_federated_compute_round_trip(tensors: dict[str, Any]) -> None:
    check_round_trip(write_federated_compute(tensors), tensors)


@pytest.mark.slow
@given(hnp.arrays("<i8", st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1)))
@settings(max_examples=200)
def test_integers_are_what_protobuf_writes(values: Any) -> None:
    data = write_tf_v1({"a": values})
    wanted = slice_pb2.SavedTensorSlices()
    wanted.data.name = "a"
    wanted.data.slice.extent.add()
    wanted.data.data.int64_val.extend(values.tolist())
    assert wanted.SerializeToString() in data


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["<i4", "<i8", "<u2", "u1", "i1", "?"])
def test_many_integers_of_every_length(dtype: str) -> None:
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 2**63, 200_001, np.int64) >> generator.integers(0, 63, 200_001)
    values = np.concatenate([bits, -bits]).astype(dtype)
    same(open_checkpoint(write_tf_v1({"a": values}))["a"], values)


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_are_views_on_the_file(format: Any) -> None:
    wanted = np.arange(1000, dtype=np.float32).reshape(10, 100)
    data = write_checkpoint({"a": wanted, "b": np.ones(3)}, format)
    whole = np.frombuffer(data, np.uint8)
    checkpoint = open_checkpoint(data)
    for name in ("a", "b"):
        assert np.shares_memory(checkpoint[name], whole)
    assert not checkpoint["a"].flags.writeable


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_of_any_layout_are_written(format: Any) -> None:
    base = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    tensors = {
        "transposed": base.T,
        "strided": base[:, ::2, ::-1],
        "broadcast": np.broadcast_to(np.float32(2), (3, 2)),
        "fortran": np.asfortranarray(base[0]),
        "text": np.array([["a", "é"], ["", "b"]]),
        "bytes": np.array([b"x", b"yy"]),
        "mixed": np.array(["é", b"\xff"], object),
        "python": [1.5, 2.5],
    }
    checkpoint = open_checkpoint(write_checkpoint(tensors, format))  # type: ignore[arg-type]
    for name in ("transposed", "strided", "broadcast", "fortran"):
        same(checkpoint[name], np.asarray(tensors[name]))
    assert checkpoint["text"].tolist() == [[b"a", "é".encode()], [b"", b"b"]]
    assert checkpoint["bytes"].tolist() == [b"x", b"yy"]
    assert checkpoint["mixed"].tolist() == ["é".encode(), b"\xff"]
    assert checkpoint["python"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("format", FORMATS)
def test_the_mapping(format: Any) -> None:
    checkpoint = open_checkpoint(write_checkpoint({"b": np.int32(1), "a": np.ones(2)}, format))
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.format == format
    assert list(checkpoint) == ["b", "a"]
    assert len(checkpoint) == 2
    assert "a" in checkpoint
    assert "c" not in checkpoint
    assert checkpoint.get("c") is None
    with pytest.raises(KeyError):
        checkpoint["c"]
    for access in (checkpoint.get_tensor, checkpoint.spec):
        with pytest.raises(StatusError, match="no tensor 'c'; it has 'b', 'a'") as caught:
            access("c")
        assert caught.value.code is Code.NOT_FOUND
    assert format in repr(checkpoint)


def test_an_empty_checkpoint_and_a_long_listing() -> None:
    for format in FORMATS:
        assert len(open_checkpoint(write_checkpoint({}, format))) == 0
    many = write_tf_v1({f"t{i}": np.ones(1) for i in range(9)})
    with pytest.raises(StatusError, match="and 4 more"):
        open_checkpoint(many).get_tensor("x")
    with pytest.raises(StatusError, match="it has none"):
        open_checkpoint(write_tf_v1({})).get_tensor("x")


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        *(("tf_v1", d) for d in ("u4", "u8", "M8[s]", "V4", "f16")),
        *(("federated_compute", d) for d in ("f2", "?", "i1", "u4", "c8", "m8[s]")),
    ],
)
def test_dtypes_without_a_place_are_refused(format: Any, dtype: str) -> None:
    with pytest.raises(
        StatusError, match=r"'a' has the dtype .* cannot hold; use one of"
    ) as caught:
        write_checkpoint({"a": np.zeros(2, dtype)}, format)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_string_is_refused(format: Any) -> None:
    with pytest.raises(StatusError, match="type int"):
        write_checkpoint({"a": np.array([b"x", 3], object)}, format)
    with pytest.raises(StatusError, match="UTF-8"):
        write_checkpoint({"a": np.array(["\ud800"], object)}, format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_tensor_beyond_a_protobuf_message_is_refused(
    format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tf_v1, federated_compute):
        monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 1000)
    assert len(open_checkpoint(write_checkpoint({"a": np.ones(100)}, format))) == 1
    with pytest.raises(StatusError, match="2 GiB"):
        write_checkpoint({"a": np.ones(125)}, format)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown checkpoint format 'npz'"):
        write_checkpoint({}, "npz")  # type: ignore[arg-type]


def test_names() -> None:
    with pytest.raises(StatusError, match="without a name"):
        write_federated_compute({"": np.ones(1)})
    with pytest.raises(StatusError, match="UTF-8"):
        write_tf_v1({"\udcff": np.ones(1)})
    odd = "not utf-8: \udcff"
    assert open_checkpoint(write_federated_compute({odd: np.ones(1)})).names() == (odd,)
    assert open_checkpoint(write_tf_v1({"": np.ones(1)}))[""].tolist() == [1]
