"""The data and the network that the program and its devices share: 64-64-10, NumPy only."""

from __future__ import annotations

import numpy as np

COLLECTION_URI = "app:/digits"
#: One example on the wire: 64 pixels from 0 to 1, then the digit.
EXAMPLE = np.dtype([("pixels", "<f4", 64), ("digit", "<i4")])


def load(seed: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's handwritten digits, shuffled: for training and held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    examples = np.zeros(len(digits.target), EXAMPLE)
    examples["pixels"] = digits.data / 16
    examples["digit"] = digits.target
    np.random.default_rng(seed).shuffle(examples)
    return examples[held_out:], examples[:held_out]


def initial(seed: int) -> dict[str, np.ndarray]:
    """Return an untrained network."""
    rng = np.random.default_rng(seed)
    return {
        "w1": rng.normal(0, np.sqrt(2 / 64), (64, 64)).astype(np.float32),
        "b1": np.zeros(64, np.float32),
        "w2": rng.normal(0, np.sqrt(2 / 64), (64, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def accuracy(network: dict[str, np.ndarray], examples: np.ndarray) -> float:
    """Return the share of digits that the network gets right."""
    hidden = np.maximum(examples["pixels"] @ network["w1"] + network["b1"], 0)
    scores = hidden @ network["w2"] + network["b2"]
    return float((scores.argmax(axis=1) == examples["digit"]).mean())


def train(
    network: dict[str, np.ndarray], examples: np.ndarray, epochs: int, rate: float, batch: int
) -> dict[str, np.ndarray]:
    """Return the network after some epochs of gradient descent on the cross entropy."""
    w1, b1, w2, b2 = (np.array(network[name]) for name in ("w1", "b1", "w2", "b2"))
    truth = np.eye(10, dtype=np.float32)[examples["digit"]]
    for _ in range(epochs):
        for first in range(0, len(examples), batch):
            x = examples["pixels"][first : first + batch]
            before = x @ w1 + b1
            hidden = np.maximum(before, 0)
            scores = hidden @ w2 + b2
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            error = odds / odds.sum(axis=1, keepdims=True) - truth[first : first + batch]
            error *= rate / len(x)
            back = (error @ w2.T) * (before > 0)
            w2 -= hidden.T @ error
            b2 -= error.sum(axis=0)
            w1 -= x.T @ back
            b1 -= back.sum(axis=0)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
