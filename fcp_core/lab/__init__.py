"""The policy lab: virtual devices against the real round machines, in virtual time."""

from __future__ import annotations

from fcp_core.lab.devices import DeviceModel
from fcp_core.lab.plot import draw
from fcp_core.lab.report import Report, RoundReport, gini
from fcp_core.lab.runner import Run, simulate, sweep
from fcp_core.lab.scenario import Scenario, TaskModel
from fcp_core.lab.tables import COLUMNS, summary, write_rounds, write_timeline

__all__ = [
    "COLUMNS",
    "DeviceModel",
    "Report",
    "RoundReport",
    "Run",
    "Scenario",
    "TaskModel",
    "draw",
    "gini",
    "simulate",
    "summary",
    "sweep",
    "write_rounds",
    "write_timeline",
]
