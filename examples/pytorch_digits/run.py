"""The same as ``../numpy_digits/run.py``, but the devices train with PyTorch.

The server and the program know nothing of it: they see named arrays. Without PyTorch this says so
and ends.

    python examples/pytorch_digits/run.py
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run the example; return 0."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so there is nothing to show: pip install torch")
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
