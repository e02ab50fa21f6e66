"""How the demonstration ends the processes of its devices."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow_federated")

from fcp_platform.demo.hosts import Hosts, hosted

pytestmark = pytest.mark.tff

#: Says how many lines it was told before it was asked to end.
HOST = f"""#!{sys.executable}
import sys
print('{{"sessions": %d, "failed": 0}}' % len(sys.stdin.readlines()))
"""


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    path = tmp_path / "host"
    path.write_text(HOST)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("fcp_platform.demo.hosts.sys.executable", str(path))


def test_they_can_be_ended_before_the_server_and_once_more():
    results: dict[str, float] = {}
    with hosted([Path("a"), Path("b"), Path("c")], 2, results) as hosts:
        hosts.start("http://localhost:1/")
        assert hosts.stop() == {"sessions": 2, "failed": 0}
    assert results == {"sessions": 2, "failed": 0}


def test_they_are_ended_without_ever_having_started():
    assert Hosts([Path("a")], 1).stop() == {"sessions": 0, "failed": 0}
