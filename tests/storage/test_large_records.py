"""Large records are put together and taken apart in steps: other threads have their turn."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.protocol import joining
from fcp_core.storage import codec
from fcp_core.storage.codec import CodecError, decode, decode_parts, encode, encode_pieces
from fcp_core.storage.records import BlobRecord, TaskRecord

#: What the bytes of a record begin with, in its name too.
TRAP = "\xa4data\xc6\x00\x00\x00\x03abc"


class Spy:
    """A decoder that remembers how much it was given."""

    def __init__(self, decoder):
        self.decoder, self.sizes = decoder, []

    def decode(self, data):
        self.sizes.append(len(data))
        return self.decoder.decode(data)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(codec, "LARGE", 200)
    monkeypatch.setattr(joining, "LARGE", 200)
    monkeypatch.setattr(joining, "_STEP", 7)


@given(st.lists(st.binary(max_size=300)), st.sampled_from([bytes, bytearray, memoryview]))
def test_pieces_are_joined_as_ever(pieces, kind):
    given_pieces = [kind(piece) for piece in pieces]
    found = joining.join(given_pieces)
    assert type(found) is bytes
    assert found == b"".join(pieces)


@given(st.text(max_size=30) | st.just(TRAP), st.binary(max_size=70_000), st.booleans())
def test_a_record_comes_back(name, data, mutable):
    record = BlobRecord(name, "task", data)
    stored = encode(record)
    assert decode(BlobRecord, bytearray(stored) if mutable else stored) == record
    if len(data) > 1 << 16:
        pieces = [data[:100], memoryview(data)[100:]]
        assert b"".join(encode_pieces(BlobRecord(name, "task", b""), pieces)) == stored


def test_the_decoder_sees_nothing_of_the_large_part(monkeypatch):
    data = bytes(range(256)) * 400
    stored = encode(BlobRecord("a/result", "a", data))
    assert decode(BlobRecord, stored).data == data
    spy = Spy(codec._decoders[BlobRecord])
    monkeypatch.setitem(codec._decoders, BlobRecord, spy)
    found = decode(BlobRecord, bytearray(stored))
    assert (found.data, type(found.data)) == (data, bytes)
    assert max(spy.sizes) < 100


def test_a_large_record_of_another_form_is_decoded_as_a_whole():
    record = TaskRecord(
        "id", "p", "name", "open", "aggregation", b"x" * 100_000, 1.0, submission_key="data" * 50
    )
    assert decode(TaskRecord, encode(record)) == record


@given(st.binary(max_size=70_000), st.integers(1, 5000))
def test_a_record_in_parts_comes_back(data, size):
    record = BlobRecord("a/result", "a", data)
    stored = encode(record)
    parts = [stored[start : start + size] for start in range(0, len(stored), size)]
    assert decode_parts(BlobRecord, iter(parts), len(stored)) == record
    if len(parts) > 1:
        with pytest.raises(CodecError):
            decode_parts(BlobRecord, iter(parts[:-1]), len(stored))


@pytest.mark.slow
def test_what_is_put_together_lies_in_memory_once():
    parts = [bytes([number]) * (1 << 18) for number in range(4)]
    stored = b"".join(encode_pieces(BlobRecord("a/result", "a", b""), parts))
    pieces = [stored[start : start + 65536] for start in range(0, len(stored), 65536)]
    tracemalloc.start()
    try:
        record = decode_parts(BlobRecord, iter(pieces), len(stored))
        assert tracemalloc.get_traced_memory()[1] < len(stored) + (1 << 18)
    finally:
        tracemalloc.stop()
    assert record.data == b"".join(parts)


@pytest.mark.slow
def test_an_error_holds_nothing_of_what_was_read_to(monkeypatch):
    """Its frames would, and the collector complains of a buffer that it ends before its views."""
    complaints = []
    monkeypatch.setattr("sys.unraisablehook", complaints.append)

    def cut_off(piece):
        rest = memoryview(piece)[1:]
        raise ConnectionError(len(rest))

    def again(piece):
        try:
            cut_off(piece)
        except ConnectionError as error:
            raise OSError("cut off") from error

    for fails in (cut_off, again):
        with pytest.raises(OSError, match=r"9|cut off") as caught:
            joining.read_in_place(fails, 100, 10)
        error = caught.value
        error.args = (error,)  # nobody but the collector lets go of it
        del error, caught
        gc.collect()
    assert complaints == []
