"""Digits that are drawn, and a network of NumPy that reads them: the demonstration without TFF.

Each digit is a few strokes. A hand writes them with its own slant, size and pen, never twice the
same, on 8 x 8 pixels: every device has its own handwriting, and nothing has to be downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

COLLECTION_URI = "app:/digits"
#: One example on the wire: 64 pixels from 0 to 1, then the digit.
EXAMPLE = np.dtype([("pixels", "<f4", 64), ("digit", "<i4")])

Arrays = Mapping[str, NDArray[np.float32]]

_SIDE = 8
_HIDDEN = 64

#: The strokes of each digit: points (right, down) in a square from 0 to 1, joined by lines.
_STROKES: tuple[tuple[tuple[tuple[float, float], ...], ...], ...] = (
    (((0.5, 0), (0.85, 0.2), (0.85, 0.8), (0.5, 1), (0.15, 0.8), (0.15, 0.2), (0.5, 0)),),
    (((0.3, 0.25), (0.6, 0), (0.6, 1)),),
    (((0.15, 0.25), (0.45, 0), (0.8, 0.2), (0.7, 0.5), (0.15, 1), (0.85, 1)),),
    (((0.2, 0.05), (0.75, 0.1), (0.45, 0.45), (0.8, 0.7), (0.5, 1), (0.15, 0.9)),),
    (((0.65, 1), (0.65, 0), (0.15, 0.65), (0.9, 0.65)),),
    (((0.8, 0), (0.25, 0), (0.2, 0.45), (0.65, 0.4), (0.8, 0.7), (0.5, 1), (0.15, 0.9)),),
    (((0.7, 0), (0.3, 0.35), (0.2, 0.75), (0.5, 1), (0.8, 0.75), (0.5, 0.5), (0.2, 0.75)),),
    (((0.15, 0), (0.85, 0), (0.4, 1)), ((0.3, 0.5), (0.7, 0.5))),
    (
        ((0.5, 0.45), (0.2, 0.2), (0.5, 0), (0.8, 0.2), (0.5, 0.45)),
        ((0.5, 0.45), (0.15, 0.75), (0.5, 1), (0.85, 0.75), (0.5, 0.45)),
    ),
    (((0.8, 0.25), (0.5, 0.5), (0.2, 0.25), (0.5, 0), (0.8, 0.25), (0.7, 1)),),
)


def write(hand: int, seed: int, count: int) -> NDArray[np.void]:
    """Return *count* digits that one hand wrote, as an array of :data:`EXAMPLE`.

    :param hand: whose handwriting; it decides how often each digit comes, too.
    """
    rng = np.random.default_rng([seed, hand])
    slant, width, height = rng.normal(0, 0.15), rng.uniform(0.6, 1), rng.uniform(0.75, 1)
    pen = rng.uniform(0.55, 0.8)
    examples = np.zeros(count, EXAMPLE)
    examples["digit"] = rng.choice(10, count, p=rng.dirichlet(np.ones(10)))
    for example in examples:
        turn = rng.normal(0, 0.1)
        shape = np.array([[width, slant], [0, height]]) @ np.array(
            [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        )
        middle = 3.5 + rng.normal(0, 0.25, 2)
        ink = np.zeros((_SIDE, _SIDE))
        for stroke in _STROKES[example["digit"]]:
            points = np.array(stroke) - 0.5 + rng.normal(0, 0.03, (len(stroke), 2))
            ink = np.maximum(ink, _line(points @ shape.T * 6 + middle, pen))
        example["pixels"] = np.clip(ink + rng.normal(0, 0.05, ink.shape), 0, 1).ravel()
    return examples


def _line(points: NDArray[np.float64], pen: float) -> NDArray[np.float64]:
    """Return how dark each pixel is under a pen that goes from point to point."""
    steps = np.linspace(0, 1, 8)[:, None]
    way = np.concatenate([a + steps * (b - a) for a, b in itertools.pairwise(points)])
    down, right = np.mgrid[0:_SIDE, 0:_SIDE]
    pixels = np.stack([right.ravel(), down.ravel()], axis=1)
    distance = np.sqrt(((pixels[:, None] - way[None]) ** 2).sum(axis=2)).min(axis=1)
    dark: NDArray[np.float64] = np.exp(-((distance / pen) ** 2)).reshape(_SIDE, _SIDE)
    return dark


def initial(seed: int) -> dict[str, NDArray[np.float32]]:
    """Return an untrained network: 64 pixels, 64 hidden units, 10 digits."""
    rng = np.random.default_rng(seed)
    pixels, digits = _SIDE * _SIDE, 10
    return {
        "w1": rng.normal(0, np.sqrt(2 / pixels), (pixels, _HIDDEN)).astype(np.float32),
        "b1": np.zeros(_HIDDEN, np.float32),
        "w2": rng.normal(0, np.sqrt(2 / _HIDDEN), (_HIDDEN, digits)).astype(np.float32),
        "b2": np.zeros(digits, np.float32),
    }


def scores(network: Arrays, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the score of each digit for each image; the highest one is the guess."""
    hidden = np.maximum(pixels @ network["w1"] + network["b1"], 0)
    return np.asarray(hidden @ network["w2"] + network["b2"])


def evaluate(network: Arrays, examples: NDArray[np.void]) -> tuple[float, float]:
    """Return the mean cross entropy, and the share of digits that the network gets right."""
    guesses, truth = scores(network, examples["pixels"]), examples["digit"]
    shifted = guesses - guesses.max(axis=1, keepdims=True)
    log_odds = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_odds[np.arange(len(truth)), truth].mean()
    return float(loss), float((guesses.argmax(axis=1) == truth).mean())


def train(
    network: Arrays, examples: NDArray[np.void], epochs: int, rate: float, batch: int
) -> dict[str, NDArray[np.float32]]:
    """Return the network after some epochs of gradient descent on the cross entropy."""
    w1, b1, w2, b2 = (np.array(network[name]) for name in ("w1", "b1", "w2", "b2"))
    wanted = np.eye(10, dtype=np.float32)[examples["digit"]]
    for _ in range(epochs):
        for first in range(0, len(examples), batch):
            x = examples["pixels"][first : first + batch]
            before = x @ w1 + b1
            hidden = np.maximum(before, 0)
            guess = hidden @ w2 + b2
            odds = np.exp(guess - guess.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - wanted[first : first + batch]
            error *= rate / len(x)
            back = (error @ w2.T) * (before > 0)
            w2 -= hidden.T @ error
            b2 -= error.sum(axis=0)
            w1 -= x.T @ back
            b1 -= back.sum(axis=0)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
