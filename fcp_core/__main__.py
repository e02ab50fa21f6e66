"""``python -m fcp_core`` is ``fcp``."""

from fcp_core.cli import main

if __name__ == "__main__":
    main()
