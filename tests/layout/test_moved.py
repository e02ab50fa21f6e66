"""Modules under their old names."""

import importlib
import sys
import warnings

import pytest

import fcp_core.errors
from fcp_core.moved import MOVED


@pytest.fixture(autouse=True)
def not_imported():
    """Importing an old name warns once in a process."""
    for name in MOVED:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_same_module_and_warns_with_the_new_one(old, new):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = importlib.import_module(old)
    message = f"{old} is deprecated and goes with the next release: import {new}"
    assert message in [str(warning.message) for warning in caught]
    assert found is importlib.import_module(new)
    assert found.__spec__.name == new


def test_the_errors_of_plugins_warn_with_the_new_name():
    with pytest.warns(DeprecationWarning, match=r"write except plugin_errors\(\)"):
        found = fcp_core.errors.PLUGIN_ERRORS
    assert found == (Exception, SystemExit)
    with pytest.raises(AttributeError, match="has no attribute 'NOTHING'"):
        _ = fcp_core.errors.NOTHING
