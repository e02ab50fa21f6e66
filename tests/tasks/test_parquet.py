"""Tables as Parquet files; what writes them is an extra."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcp_core.errors import MissingExtraError, UsageError
from fcp_core.protocol.checkpoint import write_checkpoint
from fcp_core.tasks.tables import Table


def strings(*values):
    array = np.empty(len(values), object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


def write(folder, tensors):
    """Write tensors as a Parquet file and return what Arrow reads."""
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "table.parquet"
    Table.of(write_checkpoint(tensors, "federated_compute")).write(path)
    return parquet.read_table(path)


def test_texts_and_the_ends_of_the_integers_come_back(tmp_path):
    texts = ("", "a\0b", "naïve ☃ 𝄞", 'line\nfeed, "quote"', b"\xff\x00raw")
    limits = np.iinfo(np.int64)
    numbers = np.array([limits.min, limits.max, 0, -1, 2**53 + 1], np.int64)
    table = write(tmp_path, {"key": strings(*texts), "sum": numbers})
    assert [str(field.type) for field in table.schema] == ["string", "int64"]
    assert table.schema.names == ["key", "sum"]
    assert table["key"].to_pylist() == [*texts[:4], "\\xff\0raw"]
    assert table["sum"].to_pylist() == numbers.tolist()


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    tensors = {"key": strings(), "sum": np.zeros(0, np.int64), "mean": np.zeros(0, np.float32)}
    table = write(tmp_path, tensors)
    assert table.num_rows == 0
    assert {f.name: str(f.type) for f in table.schema} == {
        "key": "string",
        "sum": "int64",
        "mean": "float",
    }


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_numbers_come_back_exactly(tmp_path_factory, data):
    """Of every dtype that a result may have; NaN and infinity are values too."""
    dtypes = {"float32": np.float32, "float64": np.float64, "int32": np.int32, "int64": np.int64}
    kind = data.draw(st.sampled_from(sorted(dtypes)))
    if kind.startswith("float"):
        elements = st.floats(width=int(kind[-2:]))
    else:
        limits = np.iinfo(kind)
        elements = st.integers(int(limits.min), int(limits.max))
    values = np.array(data.draw(st.lists(elements, max_size=9)), dtypes[kind])
    table = write(tmp_path_factory.mktemp("parquet"), {"x": values})
    assert table["x"].to_numpy().tobytes() == values.tobytes()
    assert table["x"].to_numpy().dtype == values.dtype


def test_a_scalar_is_a_row(tmp_path):
    assert write(tmp_path, {"n": np.array(7, np.int32)}).to_pylist() == [{"n": 7}]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = Table.of(write_checkpoint({"n": np.array(7, np.int32)}, "tf_v1"))
    with pytest.raises(MissingExtraError, match=r"fcp-server\[analytics\]"):
        table.write(tmp_path / "table.parquet")


def test_a_package_that_does_not_work_here_says_why(tmp_path, monkeypatch):
    """A release may want a newer NumPy than there is."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "pyarrow":
                raise ImportError("pyarrow requires NumPy 2.0")

    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    table = Table.of(write_checkpoint({"n": np.array(7, np.int32)}, "tf_v1"))
    with pytest.raises(UsageError, match=r"cannot be imported: pyarrow requires NumPy 2\.0"):
        table.write(tmp_path / "table.parquet")
