"""What is compressed, and what is not."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from fcp_core.protocol.compression import (
    LEAST_SAVING,
    LOOKED_AT,
    Sample,
    is_worth_compressing,
    sample,
)

SIZE = 1_000_000


def weights() -> bytes:
    """Return what a model looks like."""
    return (np.random.default_rng(0).standard_normal(SIZE) * 0.05).astype(np.float32).tobytes()


@pytest.mark.parametrize(
    ("data", "shrinks"),
    [
        (weights(), False),
        (np.random.default_rng(1).bytes(4 * SIZE), False),
        (bytes(4 * SIZE), True),
        (np.arange(SIZE, dtype=np.int32).tobytes(), True),
        (np.random.default_rng(2).integers(-99, 99, SIZE).astype(np.float32).tobytes(), True),
        # Most of it is zeros, as in a sparse update.
        (weights()[: SIZE // 2] + bytes(3 * SIZE + SIZE // 2), True),
    ],
    ids=["weights", "noise", "zeros", "counting", "small integers", "sparse"],
)
def test_a_sample_tells_what_all_of_it_would(data: bytes, shrinks: bool) -> None:
    whole = 1 - len(gzip.compress(data, 1)) / len(data)
    found = sample(memoryview(data))
    assert is_worth_compressing(data) is shrinks
    assert (whole >= LEAST_SAVING) is shrinks
    assert found.saving == pytest.approx(whole, abs=0.05)
    assert found.seconds > 0


def test_small_data_is_compressed_unseen() -> None:
    noise = np.random.default_rng(3).bytes(LOOKED_AT)
    assert is_worth_compressing(noise[:-1])
    assert is_worth_compressing(b"")
    assert not is_worth_compressing(noise)


@pytest.mark.parametrize(
    ("saving", "rate", "worth"),
    [
        (0.5, None, True),
        (0.09, None, False),
        (-0.01, None, False),
        # 25 ns a byte, at 10 MB a second and at 1 GB a second.
        (0.5, 10e6, True),
        (0.5, 1e9, False),
        (0.2, 10e6, False),
        (0.2, 1e6, True),
        (0.09, 1e3, False),
    ],
)
def test_the_link_decides_where_it_is_known(saving: float, rate: float | None, worth: bool) -> None:
    assert Sample(saving, 25e-9).is_worth_it(rate) is worth
