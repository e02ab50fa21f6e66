"""One device is traced: the page draws what it crosses, and it does not cross more and more."""

import sys
from pathlib import Path

import pytest

from benchmarks import trace_device
from fcp_core.protocol.checkpoint.kernels import compiled_kernels

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
#: Files and classes of ours that a device may cross. Fewer is better: lower them when they fall.
MOST = {trace_device.CHECK_IN: (15, 21), trace_device.CONTRIBUTION: (12, 20)}


@pytest.fixture(scope="module")
def ways():
    return trace_device.trace()


@pytest.mark.parametrize("name", MOST)
def test_the_page_lists_the_files_that_a_device_crosses(ways, name):
    drawn = trace_device.listed(PAGE.read_text(encoding="utf-8"))[name]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == set(ways[name].files)


@pytest.mark.parametrize("name", MOST)
def test_a_device_crosses_no_more_than_it_did(ways, name):
    files, classes = MOST[name]
    if name == trace_device.CONTRIBUTION and compiled_kernels() is None:
        classes += 1  # NumPy's loops are two classes, the compiled ones are one
    assert len(ways[name].files) <= files
    if sys.version_info >= (3, 11):  # before, code does not know its class
        assert len(ways[name].classes) <= classes
