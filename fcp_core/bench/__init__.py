"""Virtual devices that load a server: the real protocol over real sockets."""

from __future__ import annotations

from fcp_core.bench.load import drive
from fcp_core.bench.report import Report, StepTimes
from fcp_core.bench.settings import Load

__all__ = ["Load", "Report", "StepTimes", "drive"]
