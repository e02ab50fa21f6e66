"""The digits of the demonstration: who holds which, and the files that devices read.

scikit-learn ships 1,797 handwritten digits of 8 x 8 pixels. Some are held out; the others are dealt
to the devices label by label from a Dirichlet distribution, so that each device has its own mix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcp_core.errors import MissingExtraError

PIXELS = 64
CLASSES = 10
#: The name under which a device's example store knows its digits.
COLLECTION_URI = "app:/digits"


@dataclass(frozen=True)
class Digits:
    """Images and labels.

    :param images: float32 ``[n, 64]``, between 0 and 1.
    :param labels: int64 ``[n]``, 0 to 9.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def take(self, rows: NDArray[np.intp]) -> Digits:
        """Return the digits of the given rows."""
        return Digits(self.images[rows], self.labels[rows])


def load(seed: int, held_out: int) -> tuple[Digits, Digits]:
    """Return the digits to deal and the held-out ones, shuffled.

    :raises MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the demonstration", "tff") from error
    images, labels = load_digits(return_X_y=True)
    digits = Digits((images / 16).astype(np.float32), labels.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(digits))
    return digits.take(order[held_out:]), digits.take(order[:held_out])


def deal(
    digits: Digits, devices: int, seed: int, *, concentration: float = 0.5, least: int = 10
) -> list[Digits]:
    """Deal *digits* to devices, each with its own mix of labels.

    :param concentration: of the Dirichlet distribution; the smaller, the more uneven.
    :param least: how many digits every device gets at least.
    :raises ValueError: if there are not enough digits for that.
    """
    if devices * least > len(digits):
        raise ValueError(f"{len(digits)} digits do not give {devices} devices {least} each")
    rng = np.random.default_rng(seed)
    hands: list[list[int]] = [[] for _ in range(devices)]
    for label in range(CLASSES):
        rows = rng.permutation(np.flatnonzero(digits.labels == label))
        cuts = np.cumsum(rng.dirichlet([concentration] * devices))[:-1] * len(rows)
        for hand, part in zip(hands, np.split(rows, cuts.astype(int)), strict=True):
            hand.extend(int(row) for row in part)
    while len(shortest := min(hands, key=len)) < least:
        shortest.append(max(hands, key=len).pop())
    return [digits.take(np.array(hand)) for hand in hands]


def write_examples(path: Path, digits: Digits) -> None:
    """Write *digits* as a TFRecord file of ``tf.train.Example`` messages.

    Each has the features ``pixels`` (64 floats) and ``label`` (one integer).
    """
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label in zip(digits.images, digits.labels, strict=True):
            features = {
                "pixels": tf.train.Feature(float_list=tf.train.FloatList(value=image)),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
