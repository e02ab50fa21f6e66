"""The device's side by itself: what it tells a server that it takes no part."""

import numpy as np
import pytest

from fcp_core.client.protocols import PlanResults
from fcp_core.protocol.protos import secure_aggregations_pb2 as pb
from fcp_core.protocol.protos.common_pb2 import ForwardingInfo
from fcp_core.protocol.protos.task_assignments_pb2 import TaskAssignment
from fcp_core.protocol.status import Code, StatusError
from fcp_secagg.device import SecureAggregationDevice

HERE = ForwardingInfo(target_uri_prefix="http://localhost:1/")


def started(modulus):
    response = pb.StartSecureAggregationResponse(secagg_protocol_forwarding_info=HERE)
    response.secure_aggregands["v"].modulus = modulus
    response.protocol_execution_info.expected_number_of_clients = 5
    response.protocol_execution_info.minimum_surviving_clients_for_reconstruction = 4
    for resource in (response.masked_result_resource, response.nonmasked_result_resource):
        resource.data_upload_forwarding_info.CopyFrom(HERE)
    return response


@pytest.mark.parametrize("value", [31337, -31337])
@pytest.mark.parametrize("modulus", [2, 2**10, 2**14])
def test_a_server_that_names_a_small_modulus_is_told_no_number(value, modulus):
    """It could name any, and would learn of each device what was not to be seen."""
    device = SecureAggregationDevice()
    results = PlanResults(b"", {"v": np.array([value], np.int64)})
    steps = device.contribute(TaskAssignment(), results)
    next(steps)
    abort = steps.send(started(modulus))
    assert abort.route == "SecureAggregations.AbortSecureAggregation"
    assert "do not all lie from 0 to below" in abort.request.status.message
    assert "31337" not in str(abort.request)
    with pytest.raises(StatusError) as caught:
        steps.send(None)
    assert caught.value.code is Code.CANCELLED
