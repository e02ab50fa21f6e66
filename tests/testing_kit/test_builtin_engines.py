"""The built-in engine obeys the laws, however many threads it has."""

from typing import ClassVar

from fcp_aggregators.plugin import fcp_register_engines
from fcp_core.testing import EngineConformance

(LOCAL,) = fcp_register_engines()


class TestLocalEngine(EngineConformance):
    factory = LOCAL


class TestLocalEngineInTheCallingThread(EngineConformance):
    factory = LOCAL
    options: ClassVar = {"workers": 0}


class TestLocalEngineOnThreadsOnly(EngineConformance):
    factory = LOCAL
    options: ClassVar = {"workers": 3, "inline_bytes": 0, "inline_added_bytes": 0}
