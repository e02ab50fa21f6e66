"""What the tests of every distribution here get: examples without a clock."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something of the machine and nothing of the code. Examples are
# drawn afresh each time, and one that fails says how to draw it again.
settings.register_profile("fcp", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("fcp")

# Hundreds of processes are started here, each of which would compile what it imports where somebody
# wants no compiled files of what runs once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A PostgreSQL server, which is started when a test asks for it.
pytest_plugins = ["fcp_postgres.testing"]


#: What starts a database or a cluster of processes: by folder, and by what a test asks for.
_SLOW_FOLDERS = {"storage_postgres", "engine_dask", "members", "processes"}
_SLOW_FIXTURES = {"fcp_postgres_server", "dask_cluster"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is so by the way in which it is run, and what imports TensorFlow."""
    for item in items:
        folders = {*item.path.relative_to(item.config.rootpath).parts}
        starts = {*getattr(item, "fixturenames", ())} & _SLOW_FIXTURES
        if starts or folders & _SLOW_FOLDERS or item.get_closest_marker("tff"):
            item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Let the quick part of the suite not even import what is slow as a whole."""
    if config.getoption("markexpr") == "not slow" and collection_path.name.startswith("test_"):
        text = collection_path.read_text(encoding="utf-8")
        if re.search(r"^pytestmark = .*\bmark\.(slow|tff)\b", text, re.MULTILINE):
            return True
    return None
