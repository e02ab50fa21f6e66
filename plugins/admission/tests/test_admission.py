"""Keys, versions and pacing, asked through the hooks as a server asks."""

import asyncio
import hashlib

import pytest

from fcp_admission.plugin import AdmissionPlugin, numbers
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.policies import CheckIn, RetryWindow

DIGEST = hashlib.sha256(b"open sesame").hexdigest()


@pytest.fixture
def load(tmp_path):
    def load(**options):
        plugins = Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides={f"admission.{name}": value for name, value in options.items()},
            extra=[AdmissionPlugin()],
        )
        asyncio.run(plugins.startup())
        return plugins

    return load


def authenticate(plugins, **headers):
    return plugins.authenticate(
        "POST", "/v1/x", {name.replace("_", "-"): value for name, value in headers.items()}, "peer"
    )


def test_without_options_everybody_is_let_in(load):
    plugins = load()
    assert authenticate(plugins) is None
    assert plugins.admit(check_in(""), 0.0) is None
    busy = load_of(1e6)
    assert plugins.retry_window("p", True, busy, 0.0) == Plugins.retry_window(
        plugins, "p", True, {**busy, "check_in_rate": 0.0}, 0.0
    )


def load_of(rate):
    return {"open_tasks": 1, "missing": 10, "waiting": 0, "check_in_rate": rate}


def check_in(version):
    return CheckIn("p", version, "", False, False)


def test_a_key_says_who_it_is(load, tmp_path):
    (tmp_path / "keys.txt").write_text(f"# devices\n\nphones {DIGEST.upper()}\n")
    plugins = load(keys="keys.txt")
    assert authenticate(plugins, x_goog_api_key="open sesame") == "phones"
    for headers, code in (
        ({}, Code.UNAUTHENTICATED),
        ({"x_goog_api_key": "please"}, Code.PERMISSION_DENIED),
    ):
        with pytest.raises(StatusError) as caught:
            authenticate(plugins, **headers)
        assert caught.value.code is code
        assert "please" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a {DIGEST}\nopen sesame", r"keys\.txt:2: a name and the 64 hexadecimal digits"),
        (None, r"keys\.txt cannot be read"),
    ],
)
def test_a_broken_file_of_keys_stops_the_start(load, tmp_path, text, message):
    if text is not None:
        (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        load(keys="keys.txt")


@pytest.mark.parametrize(
    ("version", "admitted"),
    [("2.9.7", False), ("2.10", True), ("2.10.1", True), ("10", True), ("", False)],
)
def test_old_clients_stay_away(load, version, admitted):
    refusal = load(minimum_version="2.10", refused_pause="2h").admit(check_in(version), 0.0)
    assert (refusal is None) is admitted
    if refusal is not None:
        assert refusal.retry == RetryWindow(7200, 14400)


def test_versions_compare_by_their_numbers():
    assert numbers("v2.10-beta.3") == (2, 10, 3)


def test_devices_are_slowed_down_in_proportion(load):
    plugins = load(check_in_rate=10)
    assert plugins.retry_window("p", True, load_of(20.0), 0.0) == RetryWindow(60, 180)
    assert plugins.retry_window("p", True, load_of(80.0), 0.0) == RetryWindow(240, 720)
    assert plugins.retry_window("p", True, load_of(1e9), 0.0) == RetryWindow(1800, 5400)
    plain = load().retry_window("p", True, load_of(0.0), 0.0)
    assert plugins.retry_window("p", True, load_of(10.0), 0.0) == plain
