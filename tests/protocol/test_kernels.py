"""The loops in NumPy and the compiled ones give the same, to the last bit."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcp_core.protocol.checkpoint.kernels import NumpyKernels, compiled_kernels, default_kernels

DTYPES = ["<f4", "<f8", "<i4", "<i8", "<u8"]
NO_FLOATS = np.empty((0, 3), np.int64)
LOOPS = [NumpyKernels(), *filter(None, [compiled_kernels()])]
EVERY = pytest.mark.parametrize("kernels", LOOPS, ids=lambda kernels: kernels.name)

#: What rounds, overflows, vanishes or compares oddly.
ODD = [0.0, -0.0, 1.0, -1.5, 1 / 3, 3e38, -3e38, 1e-45, -1e-45, 1e300, np.inf, -np.inf, np.nan]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays are the same; which of two NaNs survives a sum is nobody's promise."""
    if one.dtype.kind == "f":
        if not np.array_equal(np.isnan(one), np.isnan(other)):
            return False
        one, other = (np.where(np.isnan(item), 0, item) for item in (one, other))
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def plain(total: Any, rows: Any, data: bytes, weights: Any) -> Any:
    """Add row by row, as an accumulator on its own does."""
    total = total.copy()
    with np.errstate(all="ignore"):
        for first, source, count, weight in rows:
            values = np.frombuffer(data, total.dtype, count, source)
            if weight >= 0:
                values = values * total.dtype.type(weights[weight])
            total[first : first + count] += values
    return total


@st.composite
def additions(draw: Any, longest: int) -> Any:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = draw(st.lists(st.integers(0, longest), max_size=6))
    weights = draw(st.lists(st.sampled_from([0.5, 1 / 3, 7.0, 1e-3, 1e38]), max_size=2))
    if dtype.kind != "f":
        weights = []
    gaps = draw(st.lists(st.integers(0, 9), min_size=2 * len(counts), max_size=2 * len(counts)))
    rows, first, source = [], 0, draw(st.integers(0, 9))
    for index, count in enumerate(counts):
        weight = draw(st.integers(-1, len(weights) - 1))
        # Neighbours in the total lie apart in the data, or together, in any order of the rows.
        first += gaps[2 * index] if draw(st.booleans()) else 0
        rows.append((first, source, count, weight))
        first += count
        source += count * dtype.itemsize + gaps[2 * index + 1]
    size = first + draw(st.integers(0, 3))

    def values(count: int) -> Any:
        if dtype.kind != "f":
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, count, dtype, endpoint=True)
        found = rng.normal(size=count).astype(dtype) * dtype.type(1e3)
        with np.errstate(over="ignore"):
            odd = rng.choice(np.array(ODD), count).astype(dtype)
        return np.where(rng.random(count) < 0.1, odd, found).astype(dtype)

    data = bytearray(rng.bytes(source))
    for _, at, count, _ in rows:
        data[at : at + count * dtype.itemsize] = values(count).tobytes()
    return values(size), draw(st.permutations(rows)), bytes(data), weights


def check(case: Any) -> None:
    total, rows, data, weights = case
    expected = plain(total, rows, data, weights)
    table = np.array(rows, np.int64).reshape(-1, 4)
    for kernels in LOOPS:
        got = total.copy()
        add = kernels.adder(got, table)
        factors = np.array(weights, total.dtype).astype("f8")
        add(memoryview(data), factors)
        assert same_bits(got, expected), kernels.name
        add(np.frombuffer(data, np.uint8), factors)
        assert same_bits(got, plain(expected, rows, data, weights)), kernels.name


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(additions(60))
def test_few_elements_are_added_alike(case: Any) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(additions(120_000))
def test_many_elements_are_added_alike(case: Any) -> None:
    check(case)


def test_short_runs_are_collected_and_long_ones_are_not() -> None:
    counts = [1, 3000, 9000, 2000, 1, 70_000, 5] * 3
    total = np.zeros(sum(counts), np.float32)
    first = np.cumsum([0, *counts[:-1]])
    for weight in (-1, 0):
        rows = [
            (at, 3 + 4 * at + 7 * index, counts[index], weight) for index, at in enumerate(first)
        ]
        check((total, rows, os.urandom(4 * total.size + 200), [1.5]))


@EVERY
def test_parts_match_only_if_every_byte_does(kernels: Any) -> None:
    data = bytearray(os.urandom(200))
    spans = np.array([[0, 3], [3, 3], [10, 60], [199, 200]])
    same = kernels.matcher(spans, b"".join(data[a:b] for a, b in spans))
    assert same(memoryview(data))
    inside = {at for start, end in spans for at in range(start, end)}
    for at in range(200):
        data[at] ^= 1
        assert same(memoryview(data)) is (at not in inside)
        data[at] ^= 1
    assert kernels.matcher(np.empty((0, 2), np.int64), b"")(memoryview(data))


@EVERY
def test_checksums_are_right_only_if_every_bit_is(kernels: Any) -> None:
    data = bytearray(os.urandom(1300))
    blocks = [(0, 20), (24, 24), (30, 1200)]
    for start, end in blocks:
        crc = google_crc32c.value(bytes(data[start:end]))
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        data[end : end + 4] = masked.to_bytes(4, "little")
    verify = kernels.verifier(np.array(blocks), NO_FLOATS)

    def intact(data: memoryview) -> bool:
        return verify(data)[0]

    assert intact(memoryview(data))
    covered = {at for start, end in blocks for at in range(start, end + 4)}
    for at in range(len(data)):
        data[at] ^= 0x10
        assert intact(memoryview(data)) is (at not in covered)
        data[at] ^= 0x10
    assert kernels.verifier(np.empty((0, 2), np.int64), NO_FLOATS)(memoryview(data))[0]


def sealed(pieces: list[Any]) -> tuple[bytearray, list[tuple[int, int]], list[tuple[int, int]]]:
    """Return some data, where the arrays among *pieces* lie in it, and the blocks: one for each
    run of pieces up to None."""
    data, runs, blocks, start = bytearray(b"head"), [], [], 4
    for piece in pieces:
        if piece is not None:
            if not isinstance(piece, bytes):
                runs.append((len(data), len(data) + piece.nbytes))
            data += piece if isinstance(piece, bytes) else piece.tobytes()
            continue
        blocks.append((start, len(data)))
        crc = google_crc32c.value(bytes(data[start:]))
        data += ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
        start = len(data)
    return data, runs, blocks


@EVERY
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_floats_are_measured_while_checksums_are_checked(kernels: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for sizes in ([0, 1, 7, 300], [8_200, 16_400, 50_003], [9, 40_000, 0, 33_333]):
        values = [(rng.normal(size=size) * 1e3).astype(dtype) for size in sizes]
        for at, strange in [(None, 0), *((at, x) for at in (0, -1, 777) for x in ODD[-3:])]:
            if at is not None:
                values[-1] = values[-1].copy()
                values[-1][at % values[-1].size] = strange
            pieces: list[Any] = [b"x", values[0], values[1], b"yz", None, None, values[2], None]
            data, runs, blocks = sealed([*pieces, b"loose", *values[3:]])
            table = np.array([(*run, values[0].itemsize) for run in runs])
            verify = kernels.verifier(np.array(blocks), table)
            right, peaks = verify(memoryview(data))
            assert right
            if kernels.name == "compiled" and kernels._module.HARDWARE_CRC:
                for value, peak in zip(values, peaks, strict=True):
                    row = np.array([[0, 0, value.size, -1]])
                    expected = kernels.peak(value.dtype, row)(value.tobytes(), np.empty(0))
                    assert peak == expected or np.isnan([peak, expected]).all()
            data[runs[1][0] + sizes[1] * values[0].itemsize // 2] ^= 1
            assert not verify(memoryview(data))[0]


def test_compiled_loops_of_an_older_version_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcp_fast", types.ModuleType("fcp_fast"))
    compiled_kernels.cache_clear()
    try:
        assert default_kernels().name == "numpy"
    finally:
        compiled_kernels.cache_clear()


@EVERY
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u8"])
def test_the_peak_is_the_largest_magnitude_of_all_rows(kernels: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    low = 0 if dtype == "u8" else -1000
    values = rng.integers(low, 1000, 70_003).astype(dtype)
    size = values.itemsize
    data = b"x" + values.tobytes()
    rows = np.array([[0, 1, 0, -1], [0, 1, 5, -1], [5, 1 + 5 * size, values.size - 5, -1]])
    peak = kernels.peak(values.dtype, rows)(data, np.empty(0))
    greatest = np.abs(values.astype("f8")).max()
    assert greatest <= peak <= greatest + (dtype[0] == "i")
    assert isinstance(peak, float if dtype[0] == "f" else int)
    if dtype[0] == "f":
        rows[1:, 3] = 0
        assert kernels.peak(values.dtype, rows)(data, np.array([2.5])) == 2.5 * greatest
    for extreme in (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype[0] != "f" else ():
        values[-1] = extreme
        peak = kernels.peak(values.dtype, rows)(b"x" + values.tobytes(), np.empty(0))
        assert abs(int(extreme)) <= peak or extreme == 0
    for strange in (np.nan, -np.nan, np.inf, -np.inf) if dtype[0] == "f" else ():
        for at in (0, 4, 5, 40_000, values.size - 1):
            broken = values.copy()
            broken[at] = strange
            for weight in (0.0, 2.0):
                assert np.isnan(
                    kernels.peak(values.dtype, rows)(b"x" + broken.tobytes(), np.array([weight]))
                )


@pytest.mark.parametrize("installed", [True, False])
def test_the_compiled_loops_are_the_default_where_they_are_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("fcp_fast") if installed else None
    vars(module or types.SimpleNamespace())["verify"] = max
    # None in the place of a module makes its import fail.
    monkeypatch.setitem(sys.modules, "fcp_fast", module)
    compiled_kernels.cache_clear()
    try:
        assert default_kernels().name == ("compiled" if installed else "numpy")
    finally:
        compiled_kernels.cache_clear()
