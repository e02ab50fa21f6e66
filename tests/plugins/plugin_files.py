"""Plugins as files, and what is said of them."""

import pytest

from fcp_core.aggregation.aggregator import AggregatorFactory
from fcp_core.errors import UsageError
from fcp_core.plugins import hookimpl
from fcp_core.rounds.policies import SelectionPolicyFactory

IMPORT = "from fcp_core.plugins import hookimpl\n"


def mistakes(load, *points, **arguments):
    with pytest.raises(UsageError) as caught:
        load(*points, **arguments)
    return str(caught.value).splitlines()


def aggregator(name, *uris, protocol=None):
    uris = frozenset(uris)
    return AggregatorFactory(name, uris, "for tests", make=None, load=None, protocol=protocol)


class Registers:
    """A plugin that registers what it is given."""

    def __init__(self, *factories):
        self._factories = factories

    @hookimpl
    def fcp_register_aggregators(self):
        return [f for f in self._factories if isinstance(f, AggregatorFactory)]

    @hookimpl
    def fcp_register_selection_policies(self):
        return [f for f in self._factories if isinstance(f, SelectionPolicyFactory)]
