"""What a plugin gives by name must be there: calls, methods, aggregators, options."""

import pytest

from fcp_core.plugins import hookimpl
from fcp_core.protocol.declare import Rpc, ServiceFile
from fcp_core.rounds.policies import SelectionPolicyFactory
from fcp_core.rounds.protocols import AggregationProtocolFactory
from tests.plugins.plugin_files import aggregator, mistakes


@pytest.mark.parametrize(
    ("method", "services", "why"),
    [
        ("Send", ("A", "B"), "the protocol 'x' has two methods Send; rename one"),
        ("S" * 65, ("C",), "a name has at most 64 letters"),
    ],
)
def test_methods_of_a_protocol_can_be_told_apart(load, method, services, why):
    name = "fcp.tests.mistakes"
    request = {"aggregation_id": "string", "authorization_token": "string"}
    path = "{aggregation_id}/{authorization_token}:send"
    files = [
        ServiceFile(
            f"{name}.{service}.proto",
            f"{name}.{service}",
            {"SendRequest": request, "SendResponse": {}},
            f"Mistaken{service}",
            [Rpc(method, "SendRequest", "SendResponse", f"/v1/mistaken/{service}/{path}")],
        )
        for service in services
    ]
    factory = AggregationProtocolFactory(
        "x",
        "x",
        lambda options: None,
        services=[file.service for file in files],
        files=[file.descriptor for file in files],
    )

    class Plugin:
        @hookimpl
        def fcp_register_aggregation_protocols(self):
            return [factory]

    (line,) = mistakes(load, extra=[Plugin()])
    assert why in line


class Offers:
    """A plugin that registers a protocol, and aggregators and policies for it."""

    def __init__(self, section="protocol.x", aggregator=None, wraps=None, **protocol):
        self._section, self._aggregator, self._wraps = section, aggregator, wraps
        self._protocol = AggregationProtocolFactory("x", "x", lambda options: None, **protocol)

    @hookimpl
    def fcp_add_options(self, options):
        options.add(self._section, "speed", "int", 1, "x")

    @hookimpl
    def fcp_register_aggregation_protocols(self):
        return [self._protocol]

    @hookimpl
    def fcp_register_aggregators(self):
        return [aggregator("mine", "mine:sum", protocol=self._aggregator)]

    @hookimpl
    def fcp_register_selection_policies(self):
        make = lambda options, inner: None  # noqa: E731
        return [SelectionPolicyFactory("outer", "x", make, wraps=self._wraps)]


PLAIN = "google.internal.federatedcompute.v1.Aggregations"


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({"services": [PLAIN[:-1]]}, f"serves '{PLAIN[:-1]}', which has no calls: no file"),
        ({"services": [PLAIN[:-1]]}, f"Did you mean '{PLAIN}'?"),
        ({"services": PLAIN}, "services of the protocol 'x' must be a list of names"),
        (
            {"services": [PLAIN], "aborting": ["AbortAgregation"]},
            "aborting of the protocol 'x' names 'AbortAgregation', which is none of its methods. "
            "Did you mean 'AbortAggregation'?",
        ),
        ({"aborting": "AbortAggregation"}, "aborting of the protocol 'x' must be a list of names"),
        (
            {"aggregators": {"mine:sum": "mein"}},
            "the protocol 'x' has 'mein' for mine:sum: no active plugin offers the aggregator "
            "'mein'.",
        ),
        (
            {"aggregators": {"mine:mean": "mine"}},
            "the protocol 'x' has 'mine', which does not serve mine:mean.",
        ),
        ({"aggregator": "y"}, "the aggregator 'mine' is for a protocol that is not there: no"),
        ({"wraps": "inner"}, "the selection 'outer' wraps by an option 'inner', which it does"),
        ({"section": "protocol.xx"}, "its options are for the protocol 'xx', which nobody offers."),
    ],
)
def test_what_a_plugin_names_must_be_there(load, names, why):
    (line,) = mistakes(load, extra=[Offers(**names)])
    assert line.startswith("plugin 'Offers' from ")
    assert why in line


def test_the_scopes_of_an_option_are_those_that_there_are(load):
    class Plugin:
        @hookimpl
        def fcp_add_options(self, options):
            options.add("mine", "speed", "int", 1, "x", scopes=("populations",))

    (line,) = mistakes(load, extra=[Plugin()])
    assert "scopes are of population, task, not ('populations',)." in line
