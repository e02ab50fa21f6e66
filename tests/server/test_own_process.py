"""What a process is set to that serves and does nothing else."""

import gc
import sys

import pytest

from fcp_core.server.own_process import serve_alone


@pytest.fixture
def restored():
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


def test_threads_take_turns_soon_and_what_is_there_is_collected_no_more(restored):
    serve_alone()
    assert sys.getswitchinterval() <= 0.001
    assert gc.get_freeze_count() > 0
