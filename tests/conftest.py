"""What every test gets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fcp_core.testing.aggregators import AggregatorConformance
from fcp_core.testing.kit import Conformance
from fcp_core.testing.storage import StorageConformance


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples of each law of the kits than they do elsewhere: they have many users here.

    With ``--hypothesis-profile=thorough`` there are as many as elsewhere.
    """
    if config.getoption("hypothesis_profile", None) == "thorough":
        return
    AggregatorConformance.max_examples = Conformance.max_examples = 8
    quick = config.getoption("markexpr") == "not slow"
    fewer = settings(StorageConformance.settings, max_examples=3 if quick else 20)
    StorageConformance.settings = fewer  # type: ignore[misc]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what programs leave in the user's cache folder away from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in this process did to the loggers."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.startswith("fcp") and isinstance(logger, logging.Logger):
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, a server's and two clients' certificates."""
    from tests.certificates import make_certificate

    folder = tmp_path_factory.mktemp("certificates")
    authority = make_certificate(folder, "authority")
    for name in ("server", "operator", "device"):
        make_certificate(folder, name, authority)
    return folder


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process, and those that it starts, may open 1024 files, until it is allowed more."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
