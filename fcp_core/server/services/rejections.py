"""What a device gets that cannot be served now: a rejection, and when to come back.

An error would be worse. Clients since September 2024 may crash in the delay that follows a 503, and
before a device has a retry window it takes any error for a quarter of an hour.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from fcp_core.protocol.protos import eligibility_eval_tasks_pb2 as eets
from fcp_core.protocol.protos import task_assignments_pb2 as pb
from fcp_core.protocol.routes import Route
from fcp_core.rounds.pacing import window_message
from fcp_core.rounds.policies import RetryWindow
from fcp_core.rounds.tokens import operation, operation_name


def rejection(route: Route, session_id: str, window: RetryWindow) -> Message | None:
    """Return the rejection that a call may be answered with, or None if it has none.

    :param session_id: the session that calls; ``""`` if it has none yet.
    :param window: when a device that checks in comes back; later the windows of its check-in hold.
    """
    if route.method == "RequestEligibilityEvalTask":
        found = eets.EligibilityEvalTaskResponse(
            retry_window_if_accepted=window_message(window),
            retry_window_if_rejected=window_message(window),
        )
        found.rejection_info.SetInParent()
        return found
    if route.method == "StartTaskAssignment":
        response = pb.StartTaskAssignmentResponse()
        response.rejection_info.SetInParent()
        done: Any = operation(operation_name(session_id), None, response)
        return done  # type: ignore[no-any-return]
    if route.method == "PerformMultipleTaskAssignments":
        return pb.PerformMultipleTaskAssignmentsResponse()
    return None
