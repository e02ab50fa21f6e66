"""The policy lab: virtual devices against the real round machines, in virtual time."""

from __future__ import annotations

from fcp_core.testing.simulation.devices import DeviceModel
from fcp_core.testing.simulation.lab import simulate
from fcp_core.testing.simulation.plot import draw
from fcp_core.testing.simulation.report import Report, RoundReport, gini
from fcp_core.testing.simulation.scenario import Scenario, TaskModel
from fcp_core.testing.simulation.tables import COLUMNS, summary, write_rounds, write_timeline

__all__ = [
    "COLUMNS",
    "DeviceModel",
    "Report",
    "RoundReport",
    "Scenario",
    "TaskModel",
    "draw",
    "gini",
    "simulate",
    "summary",
    "write_rounds",
    "write_timeline",
]
