"""The compiled loops check their arguments and compute the right checksums."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import google_crc32c
import numpy as np
import pytest

fast = pytest.importorskip("fcp_fast", reason="it was not compiled", exc_type=ImportError)

NONE = np.empty(0, np.float64)
NO_FLOATS = np.empty((0, 3), np.int64)


def rows(*table: Any) -> Any:
    return np.array(table, np.int64)


@pytest.mark.parametrize("method", fast.METHODS)
def test_checksums_are_those_of_a_known_library(method: str) -> None:
    data = os.urandom(200_003)
    sizes = [*range(300), *range(500, 1100, 7), 65_535, 65_536, 65_537, 131_071, 200_000]
    for size in sizes:
        for start in (0, 1, 3):
            piece = data[start : start + size]
            assert fast.crc32c(piece, 0, method) == google_crc32c.value(piece)
        first = fast.crc32c(data[: size // 3], 0, method)
        assert fast.crc32c(data[size // 3 : size], first, method) == google_crc32c.value(
            data[:size]
        )


def test_the_methods_are_known_by_name() -> None:
    assert fast.METHODS[-1] == "portable"
    assert (len(fast.METHODS) > 1) == fast.HARDWARE_CRC
    assert fast.crc32c(b"123456789") == 0xE3069283
    with pytest.raises(ValueError, match="no method"):
        fast.crc32c(b"", 0, "none")


@pytest.mark.parametrize(
    "row",
    [
        (-1, 0, 1, -1),
        (0, -1, 1, -1),
        (0, 0, -1, -1),
        (4, 0, 1, -1),
        (3, 0, 2, -1),
        (0, 17, 1, -1),
        (0, 13, 2, -1),
        (0, 0, 1 << 62, -1),
        ((1 << 63) - 1, 0, 2, -1),
        (0, (1 << 63) - 1, 1, -1),
        (0, 0, (1 << 63) - 1, -1),
        (-(1 << 63), 0, 1, -1),
        (0, 0, 1, -2),
        (0, 0, 1, 1),
    ],
)
def test_a_row_beyond_the_bounds_changes_nothing(row: Any) -> None:
    total = np.ones(4, np.float32)
    data = np.ones(5, np.float32).tobytes()
    weights = np.ones(1)
    with pytest.raises(ValueError, match=r"row 1 is out of bounds|weight"):
        fast.add(total, "f4", data, rows((0, 0, 4, 0), row), weights)
    assert total.tolist() == [1] * 4
    fast.add(total, "f4", data, rows((0, 0, 4, 0), (0, 16, 1, -1), (4, 20, 0, -1)), weights)
    assert total.tolist() == [3, 2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.ones(4, "f4"), "f2", b"", rows(), NONE), ValueError),
        ((np.ones(4, "i4"), "i4", bytes(16), rows((0, 0, 1, 0)), np.ones(1)), ValueError),
        ((np.ones(3, "f4"), "f8", b"", rows(), NONE), ValueError),
        ((np.ones(4, "f4"), "f4", b"", np.ones(3, "i8"), NONE), ValueError),
        ((np.frombuffer(bytearray(17), "u1")[1:], "f4", b"", rows(), NONE), ValueError),
        ((b"read only", "f4", b"", rows(), NONE), TypeError),
        ((np.ones((4, 4), "f4")[:, 0], "f4", b"", rows(), NONE), TypeError),
        ((np.ones(4, "f4"), "f4", "text", rows(), NONE), TypeError),
        ((), TypeError),
    ],
    ids=range(9),
)
def test_odd_arguments_are_refused(arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        fast.add(*arguments)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (rows((0, 11)), b"0123456789"),
        (rows((-1, 3)), b"0123"),
        (rows((5, 3)), b""),
        (rows((0, 4)), b"012"),
        (rows((0, 4)), b"01234"),
        (np.ones(3, "i8"), b""),
    ],
    ids=range(6),
)
def test_parts_beyond_the_bounds_are_refused(spans: Any, expected: bytes) -> None:
    with pytest.raises(ValueError, match=r"bounds|longer|shorter|columns"):
        fast.same(b"0123456789", spans, expected)


@pytest.mark.parametrize("block", [(0, 7), (-1, 2), (3, 2), (0, (1 << 63) - 1)])
def test_blocks_beyond_the_bounds_are_refused(block: Any) -> None:
    with pytest.raises(ValueError, match="bounds"):
        fast.verify(bytes(10), rows(block), NO_FLOATS, NONE)


@pytest.mark.parametrize(
    ("floats", "peaks", "match"),
    [
        ([(0, 11, 4)], 1, "floats: row 0"),
        ([(-4, 4, 4)], 1, "floats: row 0"),
        ([(4, 0, 4)], 1, "floats: row 0"),
        ([(0, 6, 4)], 1, "floats: row 0"),
        ([(0, 8, 2)], 1, "floats: row 0"),
        ([(4, 8, 4), (0, 4, 4)], 2, "floats: row 1"),
        ([(0, 4, 4)], 0, "one for each run"),
        ([(0, 4, 4)], 2, "one for each run"),
        ([(0, (1 << 63) - 4, 4)], 1, "floats: row 0"),
    ],
)
def test_runs_of_floats_beyond_the_bounds_are_refused(floats: Any, peaks: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fast.verify(bytes(10), rows((0, 6)), rows(*floats), np.empty(peaks))
    with pytest.raises(ValueError, match="blocks: row 1"):
        fast.verify(bytes(20), rows((8, 12), (0, 4)), NO_FLOATS, NONE)


def test_the_interpreter_runs_other_threads_meanwhile() -> None:
    """The lock is given away: otherwise this thread would come back when all is done."""
    data = np.zeros(64 << 20, np.uint8)
    done = threading.Event()
    ticks = 0

    def work() -> None:
        for _ in range(5):
            fast.crc32c(data, 0, "portable")
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while not done.is_set():
            done.wait(0.001)
            ticks += not done.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert ticks > 0


def test_buffers_are_given_back() -> None:
    """A buffer that stays taken could not be resized, nor ever be freed."""
    total, data = bytearray(16), bytearray(40)
    good, bad = rows((0, 0, 1, -1)), rows((9, 0, 1, -1))
    for table in (good, bad):
        try:
            fast.add(np.frombuffer(total, "f4"), "f4", data, table, NONE)
        except ValueError:
            assert table is bad
    fast.same(data, rows(), b"")
    fast.verify(data, rows((0, 4)), NO_FLOATS, NONE)
    fast.crc32c(data)
    for buffer in (total, data):
        buffer.append(0)
