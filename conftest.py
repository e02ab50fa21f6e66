"""What the tests of every distribution here get: examples without a clock."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something of the machine and nothing of the code. Examples are
# drawn afresh each time, and one that fails says how to draw it again.
settings.register_profile("fcp", deadline=None, derandomize=False, print_blob=True)
settings.register_profile("quick", settings.get_profile("fcp"), max_examples=8)
settings.register_profile("thorough", settings.get_profile("fcp"), max_examples=1000)
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
#: Laws of the kits that start several processes.
_SLOW_LAWS = ("test_what_was_read_holds", "test_survives_a_kill")


#: Of the examples that a test asks for, the quick part tries one in so many, but these at least.
_ONE_IN, _AT_LEAST = 8, 3
#: And of each law of a kit no more than these: the smallest there is, and one by chance.
_OF_A_KIT = 2
#: ``--hypothesis-profile=thorough`` tries so many times as many.
_TIMES = 10


def quick(config: pytest.Config) -> bool:
    """Whether this is ``make check``."""
    return bool(config.getoption("markexpr") == "not slow")


def pytest_configure(config: pytest.Config) -> None:
    """Let the quick part try few examples where a test does not say how many."""
    if quick(config) and not config.getoption("hypothesis_profile", None):
        settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow what is so by the way in which it is run, and what imports TensorFlow."""
    in_slow_folders: dict[Path, bool] = {}
    for item in items:
        if item.path not in in_slow_folders:
            parts = item.path.relative_to(config.rootpath).parts
            in_slow_folders[item.path] = not _SLOW_FOLDERS.isdisjoint(parts)
        starts = not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        starts = starts or item.name.startswith(_SLOW_LAWS)
        if starts or in_slow_folders[item.path] or item.get_closest_marker("tff"):
            item.add_marker(pytest.mark.slow)
    profile = settings.get_current_profile_name()
    if profile != "fcp":
        for tested in {getattr(item, "cls", None) for item in items}:
            _scale(tested, "settings", profile)  # of a machine
            if profile == "quick" and getattr(tested, "max_examples", 0) > _OF_A_KIT:
                tested.max_examples = _OF_A_KIT
        for tested in {getattr(item, "function", None) for item in items}:
            _scale(tested, "_hypothesis_internal_use_settings", profile)


def pytest_collection_finish() -> None:
    """Have no collection of garbage look again at all that the tests imported: that stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _what_is_installed_is_looked_up_once() -> Iterator[None]:
    """Read but once for a path what distributions announce: thousands of tests load the plugins."""
    found = importlib.metadata.entry_points

    @functools.cache
    def on_path(path: tuple[str, ...], **wanted: str) -> importlib.metadata.EntryPoints:
        return found(**wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            importlib.metadata,
            "entry_points",
            lambda **wanted: on_path(tuple(sys.path), **wanted),
        )
        yield


def _scale(tested: object, where: str, profile: str) -> None:
    """Have hypothesis try fewer examples than a test asks for, or more, if it asks."""
    asked = vars(tested).get(where) if tested is not None else None
    if isinstance(asked, settings) and asked.max_examples != settings().max_examples:
        fewer = min(asked.max_examples, max(_AT_LEAST, asked.max_examples // _ONE_IN))
        examples = fewer if profile == "quick" else _TIMES * asked.max_examples
        setattr(tested, where, settings(asked, max_examples=examples))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Let the quick part of the suite not even import what is slow as a whole."""
    if quick(config) and collection_path.name.startswith("test_"):
        text = collection_path.read_text(encoding="utf-8")
        if re.search(r"^pytestmark = .*\bmark\.(slow|tff)\b", text, re.MULTILINE):
            return True
    return None
