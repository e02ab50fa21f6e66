"""A process that hosts devices which train with PyTorch; see ``../numpy_digits/devices.py``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "numpy_digits"))

import devices  # it registers "train"; here it is "train_torch" that is asked for
from digits import EXAMPLE

from fcp_core.client import task

torch.set_num_threads(1)


@task("train_torch")
def train(
    arrays: Mapping[str, np.ndarray], examples: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], float]:
    """Train on the device's digits; they count by their number."""
    mine = np.frombuffer(b"".join(examples), EXAMPLE)
    pixels = torch.tensor(mine["pixels"])
    truth = torch.tensor(mine["digit"], dtype=torch.long)
    network = {name: torch.tensor(v, requires_grad=True) for name, v in arrays.items()}
    optimizer = torch.optim.SGD(network.values(), lr=settings["learning_rate"])
    size = settings["batch"]
    for _ in range(settings["epochs"]):
        for first in range(0, len(mine), size):
            x = pixels[first : first + size]
            hidden = torch.relu(x @ network["w1"] + network["b1"])
            scores = hidden @ network["w2"] + network["b2"]
            loss = torch.nn.functional.cross_entropy(scores, truth[first : first + size])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach().numpy() for name, value in network.items()}, len(mine)


if __name__ == "__main__":
    devices.main()
