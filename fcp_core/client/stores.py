"""Where a device's examples come from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from fcp_core.client.tfrecord import read_tfrecord
from fcp_core.protocol.protos import client_runner_example_data_pb2, example_query_result_pb2
from fcp_core.protocol.status import Code, StatusError

if TYPE_CHECKING:
    from fcp_core.protocol.protos.example_query_result_pb2 import ExampleQueryResult
    from fcp_core.protocol.protos.plan_pb2 import ExampleQuerySpec, ExampleSelector

_FIELDS = {
    "i": {4: "int32_values", 8: "int64_values"},
    "f": {4: "float_values", 8: "double_values"},
    "b": {1: "bool_values"},
}


class ExampleStore(ABC):
    """Gives examples to the plans that run on the device."""

    @abstractmethod
    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return the examples that *selector* asks for, serialized; called once per pass.

        :param selector: names a collection and may carry criteria.
        :raises StatusError: INVALID_ARGUMENT if there is no such collection.
        """

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Answer an example query: one vector of values per output, all of one length.

        By default the first example of the query's selector is taken as a serialized
        ``fcp.client.ExampleQueryResult``, as the reference client does.

        :raises StatusError: INVALID_ARGUMENT if there is no such collection, no example, or it is
            not an ``ExampleQueryResult``.
        """
        selector = query.example_selector
        for example in self.examples(selector):
            try:
                return example_query_result_pb2.ExampleQueryResult.FromString(example)
            except DecodeError as error:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"the example of {selector.collection_uri!r} is not an ExampleQueryResult: "
                    f"{error}",
                ) from error
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"collection {selector.collection_uri!r} has no result for an example query",
        )


def unknown_collection(uri: str, known: Iterable[str]) -> StatusError:
    """Return the error for a collection that a store does not have."""
    names = ", ".join(sorted(repr(name) for name in known)) or "none"
    return StatusError(Code.INVALID_ARGUMENT, f"unknown collection {uri!r}; there is {names}")


class CollectionStore(ExampleStore):
    """Chooses a store by the selector's ``collection_uri``, which must match exactly."""

    def __init__(self, stores: Mapping[str, ExampleStore]) -> None:
        self._stores = dict(stores)

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return the examples of the collection's store."""
        return self._store(selector.collection_uri).examples(selector)

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Let the collection's store answer."""
        return self._store(query.example_selector.collection_uri).query(query)

    def _store(self, uri: str) -> ExampleStore:
        try:
            return self._stores[uri]
        except KeyError:
            raise unknown_collection(uri, self._stores) from None


class TFRecordStore(ExampleStore):
    """The records of one TFRecord file, whatever the selector says; map it to a collection."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return the records in the order of the file."""
        return read_tfrecord(self._path)


class ExampleDataStore(ExampleStore):
    """A file that holds a serialized ``fcp.client.ClientRunnerExampleData``.

    :raises StatusError: INVALID_ARGUMENT if the file cannot be read as such.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        message = client_runner_example_data_pb2.ClientRunnerExampleData
        try:
            data = message.FromString(Path(path).read_bytes())
        except (OSError, DecodeError) as error:
            raise StatusError(
                Code.INVALID_ARGUMENT,
                f"{os.fspath(path)} cannot be read as {message.DESCRIPTOR.full_name}: {error}",
            ) from error
        self._examples = {
            uri: tuple(examples.examples)
            for uri, examples in data.examples_by_collection_uri.items()
        }

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return the collection's examples."""
        try:
            return self._examples[selector.collection_uri]
        except KeyError:
            raise unknown_collection(selector.collection_uri, self._examples) from None


class CallableStore(ExampleStore):
    """Examples from a function.

    :param function: gets the selector and returns the serialized examples.
    :param query: gets the example query and returns its result; by default the function's first
        example is the serialized result.
    """

    def __init__(
        self,
        function: Callable[[ExampleSelector], Iterable[bytes]],
        *,
        query: Callable[[ExampleQuerySpec.ExampleQuery], ExampleQueryResult] | None = None,
    ) -> None:
        self._function = function
        self._query = query

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Call the function."""
        return self._function(selector)

    def query(self, query: ExampleQuerySpec.ExampleQuery) -> ExampleQueryResult:
        """Call the query function."""
        return super().query(query) if self._query is None else self._query(query)


class EmptyExamplesStore(ExampleStore):
    """A number of empty examples, for any collection."""

    def __init__(self, count: int) -> None:
        self._count = count

    def examples(self, selector: ExampleSelector) -> Iterable[bytes]:
        """Return empty strings."""
        return (b"" for _ in range(self._count))


def make_query_result(vectors: Mapping[str, Any]) -> ExampleQueryResult:
    """Return the ``ExampleQueryResult`` of *vectors*.

    :param vectors: by name, one-dimensional and of one length: arrays of int32, int64, float32,
        float64 or bool, or sequences of ``bytes`` or ``str``.
    :raises ValueError: for other shapes, dtypes or differing lengths, and for masked elements.
    """
    result = example_query_result_pb2.ExampleQueryResult()
    lengths = set()
    for name, vector in vectors.items():
        items, field = _vector_items(name, vector)
        lengths.add(len(items))
        target = getattr(result.vector_data.vectors[name], field)
        target.SetInParent()
        target.value.extend(items)
    if len(lengths) > 1:
        raise ValueError(f"the vectors have different lengths: {sorted(lengths)}")
    result.stats.output_rows_count = lengths.pop() if lengths else 0
    return result


def _vector_items(name: str, vector: Any) -> tuple[list[Any], str]:
    """Return a vector's values and the field that they go into."""
    if isinstance(vector, np.ma.MaskedArray) and np.any(vector.mask):
        raise ValueError(f"vector {name!r} is an array of which a part is masked: fill it")
    sequence = isinstance(vector, Sequence) and not isinstance(vector, (str, bytes))
    if sequence and any(isinstance(item, (str, bytes)) for item in vector):
        # NumPy's own string arrays drop trailing NULs.
        array = np.empty(len(vector), dtype=object)
        array[:] = list(vector)
    else:
        array = np.asarray(vector)
    if array.ndim != 1:
        raise ValueError(f"vector {name!r} has {array.ndim} dimensions instead of one")
    items = array.tolist()
    if array.dtype.kind in "OSU":
        if all(isinstance(item, str) for item in items):
            return items, "string_values"
        if all(isinstance(item, bytes) for item in items):
            return items, "bytes_values"
        raise ValueError(f"vector {name!r} holds neither text nor bytes throughout")
    field = _FIELDS.get(array.dtype.kind, {}).get(array.dtype.itemsize, "")
    if not field:
        raise ValueError(f"vector {name!r} has the dtype {array.dtype}, which has no field")
    return items, field
