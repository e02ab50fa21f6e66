"""The client's rules one by one, without a server."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.client import (
    CallableStore,
    Client,
    CollectionStore,
    EmptyExamplesStore,
    ExampleDataStore,
    RetryPolicy,
    TFRecordStore,
    make_query_result,
    read_tfrecord,
    write_tfrecord,
)
from fcp_core.client.addresses import Endpoint, Router, check_uri, path_variable
from fcp_core.client.cache import ResourceCache
from fcp_core.client.operations import check_name, polling_interval
from fcp_core.protocol.protos import (
    aggregations_pb2,
    client_runner_example_data_pb2,
    common_pb2,
    plan_pb2,
    secure_aggregations_pb2,
    task_assignments_pb2,
)
from fcp_core.protocol.status import Code, StatusError
from fcp_core.protocol.wkt import Any


def selector(uri="app:/x"):
    return plan_pb2.ExampleSelector(collection_uri=uri)


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "allowed", "allowed_as_entry"),
    [
        ("https://example.org/x", True, True),
        ("HTTPS://example.org", True, True),
        ("http://localhost:8080/x", True, True),
        ("http://LocalHost:8080", True, True),
        ("http://localhost", False, True),
        ("http://localhost/x", False, True),
        ("http://localhost.example.org:80/", False, False),
        ("http://127.0.0.1:8080/", True, True),
        ("http://[::1]:8080/x", True, True),
        ("http://[::1]", False, True),
        ("http://127.0.0.1.example.org:80/", False, False),
        ("http://[::2]:80/", False, False),
        ("http://example.org/", False, False),
        ("ftp://localhost:1/", False, False),
        ("https://", False, False),
        ("", False, False),
    ],
)
def test_allowed_addresses(uri, allowed, allowed_as_entry):
    for entry_point, expected in ((False, allowed), (True, allowed_as_entry)):
        if expected:
            check_uri(uri, entry_point=entry_point)
        else:
            with pytest.raises(StatusError) as caught:
                check_uri(uri, entry_point=entry_point)
            assert caught.value.code is Code.INVALID_ARGUMENT


def test_path_variables():
    assert path_variable("aZ0-_.~") == "aZ0-_.~"
    assert path_variable("a/b c+%") == "a%2Fb%20c%2B%25"
    assert path_variable("a/b c", slashes=True) == "a/b%20c"
    assert path_variable("\x01") == "%01"
    with pytest.raises(StatusError, match="ASCII"):
        path_variable("naïve")


@pytest.mark.parametrize("base", ["https://h/p", "https://h/p/"])
def test_joining_with_one_slash(base):
    assert Endpoint(base).url("v1/x") == "https://h/p/v1/x?%24alt=proto"


def test_relative_prefixes():
    router = Router("http://localhost:1/entry")

    def resolve(prefix, remember=False):
        info = common_pb2.ForwardingInfo(target_uri_prefix=prefix)
        return router.resolve(info, "it", remember=remember).base

    assert resolve("/a") == "http://localhost:1/a"
    assert resolve("https://one/x") == "https://one/x"
    assert resolve("/a") == "http://localhost:1/a"
    assert resolve("https://two:5/x", remember=True) == "https://two:5/x"
    assert resolve("/a", remember=True) == "https://two:5/a"
    for bad in ("", "http://elsewhere/"):
        with pytest.raises(StatusError) as caught:
            resolve(bad)
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("server", "population"),
    [
        ("http://10.0.0.1:1", "p"),
        ("http://[::1", "p"),
        ("https://h:99999", "p"),
        ("https://x", "pöpulation"),
    ],
)
def test_clients_that_cannot_be(server, population):
    with pytest.raises(StatusError) as caught:
        Client(server, population, stores={})
    assert caught.value.code is Code.INVALID_ARGUMENT


# --- waiting ------------------------------------------------------------------------------------


@given(st.integers(0, 2), st.randoms(use_true_random=False))
def test_waits_before_another_try(attempt, rng):
    wait = RetryPolicy(delay=5).wait_before(attempt, rng)
    assert 2 + 0.6 * 5 * 1.3**attempt <= wait <= 2 + 5 * 1.3**attempt


def metadata(message):
    packed = Any()
    packed.Pack(message)
    return packed


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [(0, 0, 0.001), (0, 250_000_000, 0.25), (3, 0, 3), (3600, 0, 60), (-1, 0, 0.5), (0, -1, 0.5)],
)
def test_polling_intervals(seconds, nanos, expected):
    start = task_assignments_pb2.StartTaskAssignmentMetadata()
    start.polling_interval.seconds = seconds
    start.polling_interval.nanos = nanos
    assert polling_interval(metadata(start)) == expected


def test_polling_interval_of_other_metadata():
    assert polling_interval(metadata(aggregations_pb2.StartAggregationDataUploadMetadata())) == 0.5
    assert polling_interval(Any()) == 0.5
    broken = metadata(task_assignments_pb2.StartTaskAssignmentMetadata())
    broken.value = b"\xff"
    assert polling_interval(broken) == 0.5


def test_polling_interval_of_any_metadata_that_has_one():
    keys = secure_aggregations_pb2.AdvertiseKeysMetadata()
    keys.polling_interval.seconds = 2
    assert polling_interval(metadata(keys)) == 2
    unknown = Any(type_url="type.googleapis.com/not.here.Metadata", value=b"x")
    assert polling_interval(unknown) == 0.5


def test_operation_names():
    check_name("operations/a b/c")
    with pytest.raises(StatusError):
        check_name("other/a")


# --- what is kept ---------------------------------------------------------------------------------


def test_a_cache_drops_what_was_not_used_and_what_is_too_old():
    time = [0.0]
    cache = ResourceCache(100, lambda: time[0])
    cache.put("a", bytes(40), 10)
    cache.put("b", bytes(40), 10)
    assert cache.get("a") == bytes(40)
    cache.put("c", bytes(50), 10)  # "b" makes room
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    time[0] = 9
    assert cache.get("a") is not None  # and is kept for ten seconds more
    time[0] = 15
    assert [cache.get(name) is not None for name in "ac"] == [True, False]
    cache.put("a", b"x", 10)
    assert cache.get("a") == b"x"


@pytest.mark.parametrize(
    ("limit", "name", "size", "max_age"),
    [(1, "a", 1, 9), (9, "", 1, 9), (9, "a", 5, 9), (9, "a", 1, 0)],
)
def test_what_a_cache_does_not_keep(limit, name, size, max_age):
    cache = ResourceCache(limit)
    cache.put(name, bytes(size), max_age)
    assert cache.get(name) is None


# --- examples -----------------------------------------------------------------------------------


def test_tfrecords_come_back(tmp_path):
    records = [b"", b"a", bytes(range(256)) * 300]
    path = tmp_path / "records"
    write_tfrecord(path, records)
    assert list(read_tfrecord(path)) == records
    store = TFRecordStore(path)
    # Each pass begins anew.
    assert list(store.examples(selector())) == list(store.examples(selector())) == records


def test_tfrecords_of_tensorflow(tmp_path):
    # Written by TensorFlow's own writer.
    data = "0500000000000000eab2043e68656c6c6fbb1f1c19000000000000000029039807d8ea82a2"
    path = tmp_path / "records"
    path.write_bytes(bytes.fromhex(data))
    assert list(read_tfrecord(path)) == [b"hello", b""]
    write_tfrecord(path, [b"hello", b""])
    assert path.read_bytes().hex() == data


@given(st.data())
def test_damaged_tfrecords(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "records"
    write_tfrecord(path, [b"first", b"second record"])
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        # The only cut that cannot be seen is the one between two records.
        if position in (0, 8 + 4 + 5 + 4):
            position += 1
        del content[position:]
    path.write_bytes(content)
    with pytest.raises(StatusError, match="record at byte") as caught:
        list(read_tfrecord(path))
    assert caught.value.code is Code.DATA_LOSS


def test_a_damaged_first_byte_is_not_called_compression(tmp_path):
    path = tmp_path / "records"
    write_tfrecord(path, [b"first"])
    path.write_bytes(b"\x78" + path.read_bytes()[1:])
    with pytest.raises(StatusError, match="record at byte 0: the checksum of the length"):
        list(read_tfrecord(path))


def test_missing_tfrecord_file(tmp_path):
    with pytest.raises(StatusError) as caught:
        list(read_tfrecord(tmp_path / "missing"))
    assert caught.value.code is Code.NOT_FOUND


def test_example_data_file(tmp_path):
    data = client_runner_example_data_pb2.ClientRunnerExampleData()
    data.examples_by_collection_uri["app:/x"].examples.extend([b"1", b"2"])
    path = tmp_path / "data"
    path.write_bytes(data.SerializeToString())
    store = ExampleDataStore(path)
    assert list(store.examples(selector())) == [b"1", b"2"]
    with pytest.raises(StatusError, match="app:/other") as caught:
        store.examples(selector("app:/other"))
    assert caught.value.code is Code.INVALID_ARGUMENT
    path.write_bytes(b"\xff")
    with pytest.raises(StatusError, match="cannot be read"):
        ExampleDataStore(path)


def test_collections_match_exactly():
    store = CollectionStore({"app:/x": EmptyExamplesStore(3)})
    assert list(store.examples(selector())) == [b""] * 3
    for uri in ("app:/", "app:/x/y", ""):
        with pytest.raises(StatusError) as caught:
            store.examples(selector(uri))
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_query_results_come_from_the_first_example():
    query = plan_pb2.ExampleQuerySpec.ExampleQuery(example_selector=selector())
    result = make_query_result({"v": [1, 2]})
    store = CallableStore(lambda selector: [result.SerializeToString(), b"not read"])
    assert store.query(query) == result
    for examples in ([], [b"\xff"]):
        with pytest.raises(StatusError) as caught:
            CallableStore(lambda selector, examples=examples: examples).query(query)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_making_query_results():
    result = make_query_result(
        {
            "i": np.array([1, 2], np.int32),
            "l": [1, 2],
            "f": np.array([1, 2], np.float32),
            "d": [0.5, 1],
            "b": [True, False],
            "s": ["a", "é"],
            "y": [b"a", b"\xff\0"],
        }
    )
    kinds = {name: v.WhichOneof("values") for name, v in result.vector_data.vectors.items()}
    assert kinds == {
        "i": "int32_values",
        "l": "int64_values",
        "f": "float_values",
        "d": "double_values",
        "b": "bool_values",
        "s": "string_values",
        "y": "bytes_values",
    }
    assert result.stats.output_rows_count == 2
    assert result.vector_data.vectors["y"].bytes_values.value == [b"a", b"\xff\0"]
    for bad in (
        {"v": 1},
        {"v": [[1]]},
        {"v": "text"},
        {"v": [1], "w": [1, 2]},
        {"v": np.array([1], np.uint8)},
        {"v": np.array(["a", b"b"], object)},
    ):
        with pytest.raises(ValueError, match=r"vector|lengths"):
            make_query_result(bad)


# --- imports ------------------------------------------------------------------------------------


def test_importing_the_client_loads_neither_server_nor_tensorflow():
    code = (
        "import sys, fcp_core.client, fcp_core.commands.client; "
        "print([name for name in ('tornado', 'tensorflow', 'fcp_core.storage', 'fcp_core.server') "
        "if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_retry_draws_are_spread():
    rng = random.Random(5)
    waits = {RetryPolicy().wait_before(0, rng) for _ in range(20)}
    assert len(waits) == 20
