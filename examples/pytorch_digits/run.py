"""The same as ``../numpy_digits/run.py``, but the devices train with PyTorch.

The server and the program know nothing of it: they see named arrays. Without PyTorch, or without
the digits of scikit-learn, this says so and ends.

    python examples/pytorch_digits/run.py
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run the example; return 0."""
    packages = {"torch": "torch", "sklearn": "scikit-learn"}
    missing = [p for name, p in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        print(f"There is nothing to show without more packages: pip install {' '.join(missing)}")
        return 0
    sys.path.insert(0, str(HERE.parent / "numpy_digits"))
    # The module of that name beside this one is this one.
    spec = importlib.util.spec_from_file_location(
        "numpy_digits_run", HERE.parent / "numpy_digits" / "run.py"
    )
    assert spec is not None  # the file is there
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(HERE / "devices.py", task="train_torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
