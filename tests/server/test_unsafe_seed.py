"""A seed that makes noise known in advance serves nobody but this machine's devices."""

import pytest

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server, ServerThread


def make(tmp_path, **arguments):
    overrides = {"unsafe_noise_seed": "7"}
    return Server(
        Plugins.load(environ={}, overrides=overrides, working_folder=tmp_path), **arguments
    )


def test_it_is_taken_on_this_machine(tmp_path, caplog):
    with ServerThread(make(tmp_path, host="localhost")):
        pass
    assert "who knows it can take the noise off" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host": ""}, "listens on"),
        ({"host": "localhost", "external_url": "https://fcp.example/"}, "reach this server at"),
    ],
)
def test_it_is_refused_elsewhere(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=f"unsafe_noise_seed.* is for tests.*{words}"):
        make(tmp_path, **arguments)
