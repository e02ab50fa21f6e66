"""Two distributions together: the work of secure aggregation on a Dask cluster."""

import numpy as np
import pytest

from fcp_core.aggregation.spec import DataType, Intrinsic, Parameter, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task, run_devices
from fcp_dask import plugin as dask
from fcp_secagg import plugin as secagg
from fcp_secagg import unmasking
from fcp_secagg.device import SecureAggregationDevice

SUM = Intrinsic(
    "federated_secure_sum",
    (TensorSpec("v", DataType.INT64, (1,)),),
    (TensorSpec("total", DataType.INT64, (1,)),),
    (Parameter("", np.array(100, np.int64)),),
)
SECAGG = {"cohort": 4, "minimum": 3, "adversary": "curious_server", "polling_interval": 0.02}


@pytest.mark.slow
def test_masks_are_taken_off_by_the_workers(tmp_path, monkeypatch):
    """Whoever does that work in this process fails."""

    def here(arguments):
        raise AssertionError("this was to be done elsewhere")

    for name in ("add_inputs", "find_keys", "expand"):
        monkeypatch.setattr(unmasking, name, here)
    plugins = Plugins.load(
        environ={},
        working_folder=tmp_path,
        overrides={
            "engine": "dask",
            "engine.dask.workers": 1,
            "storage": "memory",
            "protocol": "secagg",
            **{f"protocol.secagg.{name}": value for name, value in SECAGG.items()},
        },
        extra=[dask, secagg],
    )
    with RunningServer(Server(plugins, populations=["people"])) as server:
        task = server.submit(query_task(SUM, goal_count=4, over_selection=1.0))
        devices = [
            make_device(server.url, {"v": np.array([n])}, protocols=[SecureAggregationDevice()])
            for n in (1, 20, 30, 4)
        ]
        run_devices(devices)
        assert server.result(task)["total"].tolist() == [55]
