"""Long-running operations, and the calls of protocols that they stand for."""

import pytest

from fcp_core.protocol.protos import task_assignments_pb2 as pb
from fcp_core.protocol.status import Code, StatusError
from fcp_core.rounds.assignment import CallState, ProtocolCall
from fcp_core.rounds.machine import InvalidTransition
from fcp_core.rounds.pacing import duration
from fcp_core.rounds.tokens import operation, operation_name, operation_token

METADATA = pb.StartTaskAssignmentMetadata(polling_interval=duration(0.5))


def test_a_name_there_and_back():
    assert operation_name("token") == "operations/token"
    assert operation_token("operations/token") == "token"
    # Devices that leave the prefix out mean the same.
    assert operation_token("token") == "token"


def test_one_that_is_pending_says_how_often_to_ask():
    message = operation("operations/u", METADATA, None)
    assert not message.done
    assert message.WhichOneof("result") is None
    found = pb.StartTaskAssignmentMetadata()
    assert message.metadata.Unpack(found)
    assert found == METADATA
    assert message.metadata.type_url.startswith("type.googleapis.com/")


def test_one_that_is_done_has_its_response():
    response = pb.StartTaskAssignmentResponse()
    response.rejection_info.SetInParent()
    message = operation("operations/u", METADATA, response)
    assert message.done
    found = pb.StartTaskAssignmentResponse()
    assert message.response.Unpack(found)
    assert found == response


def test_one_that_failed_has_an_error_and_may_have_no_metadata():
    message = operation("operations/u", None, StatusError(Code.ABORTED, "why"))
    assert message.done
    assert (message.error.code, message.error.message) == (Code.ABORTED, "why")
    assert not message.HasField("metadata")


@pytest.mark.parametrize(
    "result", [pb.StartTaskAssignmentResponse(), StatusError(Code.ABORTED, "")]
)
def test_a_call_is_answered_once(result):
    call = ProtocolCall()
    assert (call.state, call.result) == (CallState.PENDING, None)
    call.metadata = METADATA
    call.finish(result)
    assert (call.state, call.result, call.metadata) == (CallState.DONE, result, None)
    with pytest.raises(InvalidTransition):
        call.finish(StatusError(Code.INTERNAL, "late"))
    assert call.result is result
