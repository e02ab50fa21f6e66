"""What every test gets."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fcp_core.testing.aggregators import AggregatorConformance
from fcp_core.testing.kit import Conformance


def pytest_configure(config: pytest.Config) -> None:
    """Let the quick part of the suite try fewer examples of each law of the kits."""
    if config.getoption("markexpr") == "not slow":
        AggregatorConformance.max_examples = 8
        Conformance.max_examples = 8


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
