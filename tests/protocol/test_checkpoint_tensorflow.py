"""The TF V1 codec against TensorFlow itself, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcp_core.protocol.checkpoint import CheckpointReader, open_checkpoint, write_tf_v1
from fcp_core.protocol.status import StatusError

tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.tff


def save(path: Path, tensors: dict[str, Any], slices: list[str] | None = None) -> bytes:
    """Have TensorFlow write a V1 checkpoint; values may be TensorFlow tensors."""
    names = list(tensors)
    data = [tf.convert_to_tensor(value) for value in tensors.values()]
    tf.raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=names,
        shapes_and_slices=slices or [""] * len(names),
        data=data,
    )
    return path.read_bytes()


def same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got, wanted)


NUMERIC = {
    "float32": np.array([[0.0, -1.5], [np.inf, 3e38], [np.nan, 1e-45]], np.float32),
    "float64": np.array([0.1, -np.inf, 5e-324]),
    "float16": np.array([1.5, -0.0, np.inf, 65504, 6e-8], np.float16),
    "int32": np.array([0, -1, 127, 128, 2**31 - 1, -(2**31)], np.int32),
    "int64": np.array([0, -1, 2**63 - 1, -(2**63), 300], np.int64),
    "int16": np.array([-(2**15), 2**15 - 1, -1], np.int16),
    "int8": np.array([[-128, 127, -1]], np.int8),
    "uint8": np.array([0, 127, 128, 255], np.uint8),
    "uint16": np.array([0, 2**16 - 1, 2**15], np.uint16),
    "bool": np.array([True, False, True]),
    "complex64": np.array([1 + 2j, -3.5j], np.complex64),
    "complex128": np.array([[1e300 - 2j], [0.5]], np.complex128),
}
SHAPES: dict[str, np.ndarray] = {
    **NUMERIC,
    **{f"scalar/{name}": value.reshape(-1)[1].reshape(()) for name, value in NUMERIC.items()},
    **{f"empty/{name}": np.empty((0, 3), value.dtype) for name, value in NUMERIC.items()},
    "rank5": np.arange(120, dtype=np.float32).reshape(1, 2, 3, 4, 5),
    "big": np.random.default_rng(1).normal(size=300_001).astype(np.float32),
    "big integers": np.random.default_rng(1).integers(-(2**62), 2**62, 70_001),
    "strings": np.array([[b"", b"\0", b"a\0b\0"], [b"\xff\xfe", b"x" * 5000, b"y"]], object),
    "scalar/string": np.array(b"one", object),
    "empty/string": np.empty((2, 0), object),
    "a name/with  spaces-and_ünicode": np.ones(2, np.float32),
    "long/" + "n" * 3000: np.ones(1, np.float64),
}


def as_tensor(value: np.ndarray) -> Any:
    dtype = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
    return tf.constant(value, dtype=dtype, shape=value.shape)


def test_reads_what_tensorflow_writes(tmp_path: Path) -> None:
    data = save(tmp_path / "v1", {name: as_tensor(value) for name, value in SHAPES.items()})
    checkpoint = open_checkpoint(data)
    assert set(checkpoint.names()) == set(SHAPES)
    for name, wanted in SHAPES.items():
        assert checkpoint.spec(name) == (wanted.dtype, wanted.shape)
        same(checkpoint[name], wanted)


def restore(path: Path, name: str, dtype: Any) -> np.ndarray:
    value = tf.raw_ops.Restore(file_pattern=str(path), tensor_name=name, dt=dtype).numpy()
    return np.array(value, object) if dtype == tf.string else np.asarray(value)


def test_tensorflow_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v1"
    path.write_bytes(write_tf_v1(SHAPES))
    dtypes = {
        name: tf.string if value.dtype == object else tf.as_dtype(value.dtype)
        for name, value in SHAPES.items()
    }
    for name, wanted in SHAPES.items():
        same(restore(path, name, dtypes[name]), wanted)
    values = tf.raw_ops.RestoreV2(
        prefix=str(path),
        tensor_names=list(SHAPES),
        shape_and_slices=[""] * len(SHAPES),
        dtypes=list(dtypes.values()),
    )
    assert [value.shape.as_list() for value in values] == [list(v.shape) for v in SHAPES.values()]
    reader = tf.train.load_checkpoint(str(path))
    assert reader.get_variable_to_shape_map() == {
        name: list(value.shape) for name, value in SHAPES.items()
    }


def test_tensorflow_restores_a_slice_of_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v1"
    path.write_bytes(write_tf_v1({"a": np.arange(12, dtype=np.float32).reshape(4, 3)}))
    (got,) = tf.raw_ops.RestoreV2(
        prefix=str(path), tensor_names=["a"], shape_and_slices=["4 3 1,2:-"], dtypes=[tf.float32]
    )
    assert got.numpy().tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 400])
def test_many_tensors_share_blocks(tmp_path: Path, count: int) -> None:
    tensors = {f"update/{i}": np.full((i % 3,), i, np.int32) for i in range(count)}
    theirs = open_checkpoint(save(tmp_path / "theirs", tensors))
    (tmp_path / "ours").write_bytes(write_tf_v1(tensors))
    for name, wanted in tensors.items():
        same(theirs[name], wanted)
        same(restore(tmp_path / "ours", name, tf.int32), wanted)


def test_files_of_one_structure_share_a_layout(tmp_path: Path) -> None:
    """Each block holds many tensors, whose keys share their beginnings."""
    reader = CheckpointReader()
    layouts = set()
    for turn in range(4):
        rng = np.random.default_rng(turn)
        tensors: dict[str, Any] = {
            f"update/{i}": rng.normal(size=(i % 40, 7)).astype(np.float32) for i in range(200)
        } | {"weight": np.array(turn + 1, np.int64), "text": np.array([b"%d" % turn], object)}
        data = save(tmp_path / str(turn), {k: as_tensor(v) for k, v in tensors.items()})
        checkpoint = reader.open(data)
        layouts.add(checkpoint.layout)
        for name, wanted in tensors.items():
            same(checkpoint[name], wanted)
    # The first is parsed, and the second too: its size came again.
    assert len(layouts) == 2
    assert {layout and len(layout.elements) for layout in layouts} == {None, 195}


def test_blocks_of_many_sizes(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    tensors = {
        f"{i:03}": generator.normal(size=int(size)).astype(np.float32)
        for i, size in enumerate(generator.integers(1, 60_000, 40))
    }
    data = save(tmp_path / "v1", tensors)
    checkpoint = open_checkpoint(memoryview(bytearray(data)))
    for name, wanted in tensors.items():
        same(checkpoint[name], wanted)
        assert not checkpoint[name].flags.owndata


def test_a_sliced_variable_is_refused_and_spoils_nothing_else(tmp_path: Path) -> None:
    part = np.ones((2, 3), np.float32)
    data = save(tmp_path / "v1", {"part": part, "whole": part}, ["4 3 0,2:-", ""])
    checkpoint = open_checkpoint(data)
    assert checkpoint.spec("part") == (np.dtype("<f4"), (4, 3))
    with pytest.raises(StatusError, match="'part' is stored in slices"):
        checkpoint["part"]
    same(checkpoint["whole"], part)


def test_a_slice_that_names_the_whole_is_read(tmp_path: Path) -> None:
    part = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = save(tmp_path / "v1", {"part": part}, ["2 3 0,2:0,3"])
    same(open_checkpoint(data)["part"], part)


def test_the_list_of_tensors_is_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"a": np.zeros((2, 0), np.int64), "b": np.float32(1)}
    theirs = save(tmp_path / "v1", tensors)
    ours = write_tf_v1(tensors)
    end = 3 + ours[2]
    assert ours[:end] == theirs[:end]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_tensorflow_refuses_the_same_dtypes(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(tf.errors.OpError):
        save(tmp_path / "v1", {"a": np.ones(2, dtype)})
    with pytest.raises(StatusError, match="cannot hold"):
        write_tf_v1({"a": np.ones(2, dtype)})
