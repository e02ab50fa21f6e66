"""Who holds which digits in the demonstration."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fcp_platform.demo import data

pytestmark = pytest.mark.tff


def test_every_digit_is_dealt_once_and_none_that_is_held_out() -> None:
    training, held_out = data.load(seed=3, held_out=360)
    assert (len(training), len(held_out)) == (1437, 360)
    hands = data.deal(training, 30, seed=3)
    dealt = np.concatenate([hand.images for hand in hands])
    assert sorted(map(bytes, dealt)) == sorted(map(bytes, training.images))
    assert min(len(hand) for hand in hands) >= 10


def test_the_hands_are_not_alike_and_follow_from_the_seed() -> None:
    training, _ = data.load(seed=0, held_out=360)
    shares = np.array(
        [
            np.bincount(hand.labels, minlength=data.CLASSES) / len(hand)
            for hand in data.deal(training, 30, seed=0)
        ]
    )
    # Of identically distributed hands, the most common label would have a share of about 0.2.
    assert np.median(shares.max(axis=1)) > 0.3
    again = data.deal(training, 30, seed=0)
    other = data.deal(training, 30, seed=1)
    first = data.deal(training, 30, seed=0)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert any(len(a) != len(b) for a, b in zip(first, other, strict=True))


def test_too_many_devices_for_the_digits_are_refused() -> None:
    training, _ = data.load(seed=0, held_out=360)
    with pytest.raises(ValueError, match="1437 digits do not give 200 devices 10 each"):
        data.deal(training, 200, seed=0)
