"""Modules under their old names."""

import importlib
import sys
import warnings

import pytest

from fcp_core.moved import MOVED

BELOW = {
    "fcp_core.testing.simulation.world": "fcp_core.lab.world",
    "fcp_core.testing.simulation.devices": "fcp_core.lab.devices",
}


@pytest.fixture(autouse=True)
def not_imported():
    """Importing an old name warns once in a process."""
    for name in (*MOVED, *BELOW):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("old", "new"), [*MOVED.items(), *BELOW.items()])
def test_an_old_name_is_the_same_module_and_warns_with_the_new_one(old, new):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = importlib.import_module(old)
    message = f"{old} is deprecated and goes with the next release: import {new}"
    assert message in [str(warning.message) for warning in caught]
    assert found is importlib.import_module(new)
    assert found.__spec__.name == new


def test_what_was_never_there_is_not_found_under_an_old_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'fcp_core\.lab\.nothing'"):
            importlib.import_module("fcp_core.testing.simulation.nothing")
