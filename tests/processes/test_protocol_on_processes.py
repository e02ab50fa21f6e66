"""A protocol with a service of its own, on a server of several processes."""

import numpy as np

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task, run_devices
from fcp_core.testing.masked_sum import MaskedSumDevice

PLUGIN = """
from fcp_core.plugins import hookimpl
from fcp_core.testing import masked_sum


@hookimpl
def fcp_add_options(options):
    masked_sum.add_options(options)


@hookimpl
def fcp_register_aggregation_protocols():
    return [masked_sum.MASKED_SUM]
"""

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.INT64, (2,)),),
    (TensorSpec("total", DataType.INT64, (2,)),),
)


def test_a_protocol_of_its_own_on_several_processes(tmp_path):
    (tmp_path / "masked.py").write_text(PLUGIN)
    (tmp_path / "setup.cfg").write_text("[fcp]\nplugins = masked.py\nprotocol = masked_sum\n")
    plugins = Plugins.load(environ={}, working_folder=tmp_path)
    with RunningServer(Server(plugins, populations=["people"], processes=2)) as server:
        task = server.submit(query_task(SUM, goal_count=8))
        devices = [
            make_device(server.url, {"v": np.array([10**n, -n])}, protocols=[MaskedSumDevice()])
            for n in range(8)
        ]
        try:
            results = run_devices(devices)
        finally:
            for device in devices:
                device.close()
        assert {result.outcome.name for result in results} == {"CONTRIBUTED"}
        assert server.result(task)["total"].tolist() == [11111111, -28]
