"""The engine obeys the laws, with a cluster of its own and a worker that the kit kills."""

from typing import ClassVar

import pytest

from fcp_core.testing import EngineConformance
from fcp_dask.plugin import FACTORY

pytestmark = pytest.mark.slow

#: Everything that keeps its inputs reports on the cluster.
OPTIONS = {
    "workers": 2,
    "patience": 60.0,
    "report_bytes": 0,
    **dict.fromkeys(("address", "tls_ca_file", "tls_client_cert", "tls_client_key")),
}


class TestDaskEngine(EngineConformance):
    factory = FACTORY
    options: ClassVar = OPTIONS
    expendable = True
