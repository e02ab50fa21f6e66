"""A population that is another member's by now."""

import pytest

from fcp_core.protocol.status import Code, StatusError
from fcp_core.server.services.population import Populations


class Made:
    def __init__(self, name):
        self.name = name

    def forget(self):
        pass


def code_of(populations, name):
    with pytest.raises(StatusError) as caught:
        populations.get(name)
    return caught.value.code


def test_a_call_under_way_when_its_population_goes_is_not_told_that_there_is_none():
    """Seen in the simulation: NOT_FOUND at a check-in keeps a published client away for hours."""
    populations = Populations(["phones"], Made)
    assert code_of(populations, "tablets") is Code.NOT_FOUND
    populations.remove("tablets")
    assert code_of(populations, "tablets") is Code.NOT_FOUND
    populations.remove("phones")
    assert code_of(populations, "phones") is Code.UNAVAILABLE
    populations.add("phones")
    assert populations.get("phones").name == "phones"
