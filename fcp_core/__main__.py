"""``python -m fcp_core`` is ``fcp``."""

from fcp_core.commands.main import main

if __name__ == "__main__":
    main()
