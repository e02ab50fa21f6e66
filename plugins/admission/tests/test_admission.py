"""Versions, asked through the hooks as a server asks."""

import asyncio

import pytest

from fcp_admission.plugin import AdmissionPlugin, numbers
from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.policies import CheckIn, RetryWindow


@pytest.fixture
def load(tmp_path):
    def load(**overrides):
        plugins = Plugins.load(
            environ={},
            working_folder=tmp_path,
            overrides={name.replace("__", "."): value for name, value in overrides.items()},
            extra=[AdmissionPlugin()],
        )
        asyncio.run(plugins.startup())
        return plugins

    return load


def check_in(version, population="p"):
    return CheckIn(population, version, "", False, False)


def test_without_options_everybody_is_let_in(load):
    assert load().admit(check_in(""), 0.0) is None


@pytest.mark.parametrize(
    ("version", "admitted"),
    [("2.9.7", False), ("2.10", True), ("2.10.1", True), ("10", True), ("", False)],
)
def test_old_clients_stay_away(load, version, admitted):
    plugins = load(admission__minimum_version="2.10", admission__pause="2h")
    refusal = plugins.admit(check_in(version), 0.0)
    assert (refusal is None) is admitted
    if refusal is not None:
        assert refusal.reason == "the client is older than 2.10"
        assert refusal.retry == RetryWindow(7200, 14400)


def test_a_population_has_its_own_minimum(load):
    plugins = load(**{"population:beta.admission.minimum_version": "3"})
    assert plugins.admit(check_in("2"), 0.0) is None
    assert plugins.admit(check_in("2", "beta"), 0.0) is not None


def test_a_minimum_without_a_number_stops_the_start(load):
    with pytest.raises(UsageError, match=r"admission\.minimum_version: 'newest' has no number"):
        load(admission__minimum_version="newest")


def test_versions_compare_by_their_numbers():
    assert numbers("v2.10-beta.3") == (2, 10, 3)
