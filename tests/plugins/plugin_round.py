"""A round with whatever the configuration in the working folder chooses; prints what came of it."""

import contextlib
import json
import sys

from fcp_core.aggregation.spec import DataType, Intrinsic, TensorSpec
from fcp_core.plugins.manager import Plugins
from fcp_core.server import Server
from fcp_core.testing import RunningServer, make_device, query_task, run_devices

SUM = Intrinsic(
    "federated_sum",
    (TensorSpec("v", DataType.FLOAT, (2,)),),
    (TensorSpec("total", DataType.FLOAT, (2,)),),
)


def run_round(plugins):
    """Return what is active, and the sum over three devices, one of which brings a large number."""
    active = [[offer.kind, offer.name] for offer in plugins.offers() if offer.active]
    protocols = [factory.device() for factory in plugins.protocols.values() if factory.device]
    vectors = ([0.5, 1.0], [0.25, 1.0], [40.0, 1.0])
    with RunningServer(Server(plugins, populations=["people"])) as server:
        task = server.submit(query_task(SUM, goal_count=3))
        with contextlib.ExitStack() as stack:
            devices = [
                stack.enter_context(
                    make_device(server.url, {"v": v}, client_version="9", protocols=protocols)
                )
                for v in map(float32, vectors)
            ]
            outcomes = [result.outcome.name for result in run_devices(devices)]
        return {
            "active": active,
            "outcomes": outcomes,
            "total": server.result(task)["total"].tolist(),
        }


def float32(values):
    import numpy as np

    return np.array(values, np.float32)


if __name__ == "__main__":
    json.dump(run_round(Plugins.load(environ={})), sys.stdout)
