"""What a process is set to that serves and does nothing else."""

import gc
import resource
import sys

import pytest

from fcp_core.plugins.manager import Plugins
from fcp_core.server.http.limits import Limits
from fcp_core.server.own_process import OTHER_FILES, allow_files, allowed_files, serve_alone


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


def test_a_server_allows_itself_files_for_its_connections(few_files):
    allow_files(100)
    assert allowed_files() == 1024
    allow_files(500)
    assert allowed_files() == 1000 + OTHER_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_files(10**9)
    assert allowed_files() == hard


def test_connections_fit_into_the_files_that_there_may_be(few_files):
    limits = Limits.from_config(Plugins.load(environ={}).config)
    assert limits.max_connections == 1024 - OTHER_FILES
    assert limits.max_connections_per_address == (1024 - OTHER_FILES) // 4
    few = Limits(max_connections=200, max_connections_per_address=0)
    assert few.within(allowed_files()) == few
    assert few.within(OTHER_FILES).max_connections == OTHER_FILES // 2
