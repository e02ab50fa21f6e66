"""The server's own verdicts at check-in: version and capabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcp_core.errors import UsageError
from fcp_core.plugins.manager import Plugins
from fcp_core.rounds.policies import CheckIn, RetryWindow, combined
from fcp_plugins.eligibility_verdicts import Capabilities, ClientVersion


def check_in(version="", **capabilities):
    can = {
        "supports_multiple_task_assignment": False,
        "supports_native_eligibility": False,
        **capabilities,
    }
    return CheckIn("p", version, "", **can)


@pytest.mark.parametrize(
    ("minimum", "version", "admitted"),
    [
        ("", "", True),
        ("", "whatever", True),
        ("1.4", "1.4", True),
        ("1.4", "1.10", True),
        ("1.4", "2", True),
        ("1.4", "1.4.0.1", True),
        ("2.0", "2", True),
        ("1.4", "1.3.99", False),
        ("1.4", "1", False),
        ("1.4", "", False),
        ("1.4", "1.5-beta", False),
        ("1.4", "9" * 65, False),
    ],
)
def test_a_client_below_the_minimum_is_refused(minimum, version, admitted):
    refusal = ClientVersion(minimum).admit(check_in(version), 0.0)
    assert (refusal is None) is admitted
    if refusal is not None:
        assert refusal.retry == RetryWindow(43200.0, 86400.0)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4).map(tuple), st.text(max_size=8))
def test_any_version_is_judged(numbers, text):
    policy = ClientVersion(".".join(map(str, (*numbers, 1))))
    assert policy.admit(check_in(".".join(map(str, (*numbers, 1)))), 0.0) is None
    assert policy.admit(check_in(".".join(map(str, (*numbers, 2)))), 0.0) is None
    assert policy.admit(check_in(".".join(map(str, numbers))), 0.0) is not None
    policy.admit(check_in(text), 0.0)


def test_a_device_that_lacks_a_capability_is_told_which():
    policy = Capabilities(("gzip", "multiple_tasks"))
    refusal = policy.admit(check_in(), 0.0)
    assert refusal.reason == "the client lacks gzip, multiple_tasks"
    assert refusal.retry == RetryWindow(43200.0, 86400.0)
    able = check_in(supports_multiple_task_assignment=True, supported_compression=(1,))
    assert policy.admit(able, 0.0) is None
    assert Capabilities(()).admit(check_in(), 0.0) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eligibility.client_version.minimum", "new", "'new' is no version"),
        ("eligibility.capabilities.required", "gzip, flight", "'flight' is not one of gzip"),
    ],
)
def test_an_option_that_does_not_do_is_told(key, value, message):
    name = key.split(".")[1]
    with pytest.raises(UsageError, match=message):
        Plugins.load(environ={}, working_folder="/", overrides={"eligibility": name, key: value})


def test_it_is_asked_at_check_in():
    plugins = Plugins.load(
        environ={},
        working_folder="/",
        overrides={
            "eligibility": "client_version, capabilities",
            "eligibility.client_version.minimum": "3",
            "eligibility.capabilities.required": "willow",
        },
    )
    policies = plugins.make_eligibility_policies()

    def refusal(device):
        return combined(plugins.judge(policy, device, 0.0) for policy in policies)

    found = refusal(check_in("2.9"))
    assert found.reason == "the client is older than 3; the client lacks willow"
    assert refusal(check_in("3", supports_willow=True)) is None
